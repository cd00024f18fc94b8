/* hog SECONDS: burns one CPU, and ends by itself whatever became of its parent. */
#include "guest.h"

int main(int argc, char **argv)
{
	volatile unsigned long n = 0;

	alarm((unsigned int)argument(argc, argv, 1, 60));
	for (;;)
		n++;
}
