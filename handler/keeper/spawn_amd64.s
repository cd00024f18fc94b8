#include "textflag.h"

// func spawn(vdsoStart, vdsoEnd uintptr) int
//
// clone(CLONE_FILES) of a process that does nothing: it gives itself a session
// and the root folder, unmaps everything but this code and the vdso, and sleeps.
// The child uses registers only: its stack goes with the rest.
// Returns the pid, or -errno, in the parent.
TEXT ·spawn(SB), NOSPLIT|NOFRAME, $0-24
	MOVQ vdsoStart+0(FP), R12
	MOVQ vdsoEnd+8(FP), R13
	LEAQ ·spawn(SB), R8
	ANDQ $~4095, R8
	MOVQ R8, BX            // first page of this code; it ends in the next at most

	MOVQ $0x400, DI        // CLONE_FILES, no exit signal
	MOVQ $0, SI
	MOVQ $0, DX
	MOVQ $0, R10
	MOVQ $0, R8
	MOVQ $56, AX           // clone
	SYSCALL
	CMPQ AX, $0
	JEQ  child
	MOVQ AX, ret+16(FP)
	RET

child:
	MOVQ $112, AX          // setsid
	SYSCALL
	LEAQ rootFolder<>(SB), DI
	MOVQ $80, AX           // chdir
	SYSCALL

	MOVQ $0, DI            // [0, code)
	MOVQ BX, SI
	MOVQ $11, AX           // munmap
	SYSCALL
	LEAQ 8192(BX), DI      // [code end, vdso)
	MOVQ R12, SI
	SUBQ DI, SI
	MOVQ $11, AX
	SYSCALL
	MOVQ R13, DI           // [vdso end, end of user memory)
	MOVQ $0x7ffffffff000, SI
	SUBQ DI, SI
	MOVQ $11, AX
	SYSCALL

sleep:
	MOVQ $34, AX           // pause
	SYSCALL
	JMP  sleep

DATA rootFolder<>+0(SB)/2, $"/\x00"
GLOBL rootFolder<>(SB), RODATA, $2
