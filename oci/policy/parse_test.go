package policy

import (
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
)

const (
	ki = int64(1) << 10
	mi = int64(1) << 20
	gi = int64(1) << 30
)

// defaults is the policy of a container with a budget and nothing else.
func defaults(localBytes, farBytes int64) Policy {
	return Policy{
		LocalBytes: localBytes, FarBytes: farBytes, Store: "default",
		LowPercent: 85, HighPercent: 95, OnFailure: OnFailureOpen,
	}
}

func TestAnnotationsBecomeAPolicy(t *testing.T) {
	with := func(p Policy, change func(*Policy)) Policy { change(&p); return p }
	cases := map[string]struct {
		annotations map[string]string
		limitBytes  int64
		want        Policy
	}{
		"a budget alone is unlimited far without a memory limit": {
			map[string]string{KeyLocal: "256Mi"}, 0, defaults(256*mi, Unlimited),
		},
		"a memory limit of -1 is none": {
			map[string]string{KeyLocal: "256Mi"}, -1, defaults(256*mi, Unlimited),
		},
		"what the budget leaves of the memory limit may be far": {
			map[string]string{KeyLocal: "256Mi"}, gi, defaults(256*mi, 768*mi),
		},
		"a budget in plain bytes": {
			map[string]string{KeyLocal: "1048576"}, 0, defaults(mi, Unlimited),
		},
		"a budget in powers of 1000": {
			map[string]string{KeyLocal: "1G"}, 0, defaults(1e9, Unlimited),
		},
		"a budget as a share of the limit": {
			map[string]string{KeyLocal: "25%"}, gi, defaults(256*mi, 768*mi),
		},
		"90 % of the limit is still allowed": {
			map[string]string{KeyLocal: "90%"}, 1000 * mi, defaults(900*mi, 100*mi),
		},
		"90 % of a limit that it does not divide is rounded down": {
			map[string]string{KeyLocal: "90%"}, 2*mi + 1, defaults(1887437, 2*mi+1-1887437),
		},
		"a budget of the smallest size": {
			map[string]string{KeyLocal: "1Mi"}, 0, defaults(mi, Unlimited),
		},
		"a far limit as a size": {
			map[string]string{KeyLocal: "256Mi", KeyFar: "2G"}, gi, defaults(256*mi, 2e9),
		},
		"a far limit as a share may pass the limit": {
			map[string]string{KeyLocal: "256Mi", KeyFar: "150%"}, gi, defaults(256*mi, 1536*mi),
		},
		"a far limit of nothing": {
			map[string]string{KeyLocal: "256Mi", KeyFar: "0"}, gi, defaults(256*mi, 0),
		},
		"an unlimited far limit beside a memory limit": {
			map[string]string{KeyLocal: "256Mi", KeyFar: "unlimited"}, gi, defaults(256*mi, Unlimited),
		},
		"everything at once": {
			map[string]string{
				KeyLocal: "64Mi", KeyFar: "1Ti", KeyStore: "nvme-0.fast", KeyLow: "50", KeyHigh: "60",
				KeyRegions: "0x7f0000000000-0x7f0000001000,1000-3000", KeyOnFailure: "closed",
			}, 0, Policy{
				LocalBytes: 64 * mi, FarBytes: 1 << 40, Store: "nvme-0.fast", LowPercent: 50, HighPercent: 60,
				Regions:   []Range{{0x1000, 0x3000}, {0x7f0000000000, 0x7f0000001000}},
				OnFailure: OnFailureClosed,
			},
		},
		"all regions": {
			map[string]string{KeyLocal: "64Mi", KeyRegions: "all"}, 0, defaults(64*mi, Unlimited),
		},
		"ranges that touch do not overlap": {
			map[string]string{KeyLocal: "64Mi", KeyRegions: "2000-3000,1000-2000"},
			0,
			with(defaults(64*mi, Unlimited), func(p *Policy) { p.Regions = []Range{{0x1000, 0x2000}, {0x2000, 0x3000}} }),
		},
		"the last page of the address space": {
			map[string]string{KeyLocal: "64Mi", KeyRegions: "fffffffffff000-100000000000000"},
			0,
			with(defaults(64*mi, Unlimited), func(p *Policy) { p.Regions = []Range{{1<<56 - 4096, 1 << 56}} }),
		},
		"the watermarks at their ends": {
			map[string]string{KeyLocal: "64Mi", KeyLow: "1", KeyHigh: "100"},
			0,
			with(defaults(64*mi, Unlimited), func(p *Policy) { p.LowPercent, p.HighPercent = 1, 100 }),
		},
		"annotations of others do not matter": {
			map[string]string{KeyLocal: "64Mi", "io.farpagex": "1", "com.example/local": "x"}, 0, defaults(64*mi, Unlimited),
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, optedIn, err := Parse(c.annotations, c.limitBytes)
			if err != nil || !optedIn {
				t.Fatalf("optedIn %v, error %v", optedIn, err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestWithoutAnnotationsNobodyIsOptedIn(t *testing.T) {
	for _, annotations := range []map[string]string{nil, {}, {"io.kubernetes.cri.container-type": "container", "farpage": "yes"}} {
		if p, optedIn, err := Parse(annotations, gi); optedIn || err != nil || !reflect.DeepEqual(p, Policy{}) {
			t.Errorf("%v: %+v, %v, %v", annotations, p, optedIn, err)
		}
	}
}

func TestAWrongAnnotationIsNamedWithWhatIsAllowed(t *testing.T) {
	const (
		sizes      = "a whole number of bytes, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), such as 256Mi"
		localForms = sizes + ", or a share of the memory limit such as 50%; from 1Mi"
		localLimit = localForms + " to 90 % of the memory limit (966367641 bytes)"
		farForms   = sizes + ", or a share of the memory limit such as 50%, or unlimited"
		allKeys    = "io.farpage.local, io.farpage.far, io.farpage.store, io.farpage.low, io.farpage.high, io.farpage.regions, io.farpage.on-failure"
		marks      = "a whole number of percent of the budget, without %; low from 1, high to 100, low below high"
		regions    = "all, or START-END[,START-END...]: hexadecimal addresses, multiples of 0x1000, end not included, no two overlapping, 256 ranges at most"
		stores     = "a name in the agent's configuration: letters, digits, '.', '_' and '-', a letter or digit first, 63 at most"
		failures   = "open (the container starts unmanaged) or closed (it does not start)"
	)
	local := func(more ...string) map[string]string {
		annotations := map[string]string{KeyLocal: "64Mi"}
		for i := 0; i < len(more); i += 2 {
			annotations[more[i]] = more[i+1]
		}
		return annotations
	}
	cases := []struct {
		annotations map[string]string
		limitBytes  int64
		want        string
	}{
		{local("io.farpage.locl", "1G"), 0, `annotation io.farpage.locl="1G": there is no such annotation; allowed: ` + allKeys},
		{map[string]string{"io.farpage.locl": "1G"}, 0, `annotation io.farpage.locl="1G": there is no such annotation; allowed: ` + allKeys},
		{local("io.farpage.", ""), 0, `annotation io.farpage.="": there is no such annotation; allowed: ` + allKeys},
		{local("io.farpage.local/app", "1G"), 0, `annotation io.farpage.local/app="1G": a /CONTAINER behind the key works on Kubernetes only, with the name of one of the pod's containers; allowed: io.farpage.local`},
		{local("io.farpage.a\nb", "1"), 0, `annotation "io.farpage.a\nb"="1": there is no such annotation; allowed: ` + allKeys},
		{map[string]string{KeyFar: "1G", KeyOnFailure: "open"}, 0, `annotation io.farpage.far="1G": io.farpage.local is missing, and only it opts a container in; allowed: with io.farpage.local (such as 256Mi) beside it`},

		{local(KeyLocal, ""), 0, `annotation io.farpage.local="": not a size; allowed: ` + localForms},
		{local(KeyLocal, "256MB"), 0, `annotation io.farpage.local="256MB": not a size; allowed: ` + localForms},
		{local(KeyLocal, "256m"), 0, `annotation io.farpage.local="256m": not a size; allowed: ` + localForms},
		{local(KeyLocal, "-1"), 0, `annotation io.farpage.local="-1": not a size; allowed: ` + localForms},
		{local(KeyLocal, " 1G"), 0, `annotation io.farpage.local=" 1G": not a size; allowed: ` + localForms},
		{local(KeyLocal, "1.5Gi"), 0, `annotation io.farpage.local="1.5Gi": not a size; allowed: ` + localForms},
		{local(KeyLocal, "9223372036854775808"), 0, `annotation io.farpage.local="9223372036854775808": more than 9223372036854775807 bytes; allowed: ` + localForms},
		{local(KeyLocal, "8388608Ti"), 0, `annotation io.farpage.local="8388608Ti": more than 9223372036854775807 bytes; allowed: ` + localForms},
		{local(KeyLocal, "1048575"), 0, `annotation io.farpage.local="1048575": a budget of 1048575 bytes is too small; allowed: ` + localForms},
		{local(KeyLocal, "50%"), 0, `annotation io.farpage.local="50%": a percentage needs a memory limit, and this container has none; allowed: ` + localForms},
		{local(KeyLocal, "0%"), gi, `annotation io.farpage.local="0%": a budget of 0 bytes is too small; allowed: ` + localLimit},
		{local(KeyLocal, "%"), gi, `annotation io.farpage.local="%": not a percentage: it takes a whole number before the %; allowed: ` + localLimit},
		{local(KeyLocal, "5.5%"), gi, `annotation io.farpage.local="5.5%": not a percentage: it takes a whole number before the %; allowed: ` + localLimit},
		{local(KeyLocal, "-5%"), gi, `annotation io.farpage.local="-5%": not a percentage: it takes a whole number before the %; allowed: ` + localLimit},
		{local(KeyLocal, "91%"), gi, `annotation io.farpage.local="91%": 977105059 bytes are more than 90 % of the memory limit of 1073741824 bytes; allowed: ` + localLimit},
		{local(KeyLocal, "966367642"), gi, `annotation io.farpage.local="966367642": 966367642 bytes are more than 90 % of the memory limit of 1073741824 bytes; allowed: ` + localLimit},
		{local(KeyLocal, "9223372036854775807%"), gi, `annotation io.farpage.local="9223372036854775807%": more than 9223372036854775807 bytes; allowed: ` + localLimit},

		{local(KeyFar, ""), gi, `annotation io.farpage.far="": not a size; allowed: ` + farForms},
		{local(KeyFar, "all"), gi, `annotation io.farpage.far="all": not a size; allowed: ` + farForms},
		{local(KeyFar, "10%"), 0, `annotation io.farpage.far="10%": a percentage needs a memory limit, and this container has none; allowed: ` + farForms},

		{local(KeyStore, ""), 0, `annotation io.farpage.store="": not the name of a store; allowed: ` + stores},
		{local(KeyStore, "../x"), 0, `annotation io.farpage.store="../x": not the name of a store; allowed: ` + stores},
		{local(KeyStore, "a/b"), 0, `annotation io.farpage.store="a/b": not the name of a store; allowed: ` + stores},
		{local(KeyStore, "file:///x"), 0, `annotation io.farpage.store="file:///x": not the name of a store; allowed: ` + stores},

		{local(KeyLow, "0"), 0, `annotation io.farpage.low="0": not a watermark; allowed: ` + marks},
		{local(KeyHigh, "101"), 0, `annotation io.farpage.high="101": not a watermark; allowed: ` + marks},
		{local(KeyHigh, "95%"), 0, `annotation io.farpage.high="95%": not a watermark; allowed: ` + marks},
		{local(KeyLow, "+5"), 0, `annotation io.farpage.low="+5": not a watermark; allowed: ` + marks},
		{local(KeyHigh, "80"), 0, `annotation io.farpage.high="80": low is not below high: io.farpage.low is 85 without an annotation; allowed: ` + marks},
		{local(KeyLow, "95"), 0, `annotation io.farpage.low="95": low is not below high: io.farpage.high is 95 without an annotation; allowed: ` + marks},
		{local(KeyLow, "60", KeyHigh, "50"), 0, `annotation io.farpage.low="60": low is not below high: io.farpage.high is 50; allowed: ` + marks},

		{local(KeyRegions, ""), 0, `annotation io.farpage.regions="": "" is not a range of addresses; allowed: ` + regions},
		{local(KeyRegions, "ALL"), 0, `annotation io.farpage.regions="ALL": "ALL" is not a range of addresses; allowed: ` + regions},
		{local(KeyRegions, "1000-2000,"), 0, `annotation io.farpage.regions="1000-2000,": "" is not a range of addresses; allowed: ` + regions},
		{local(KeyRegions, "1000-2000-3000"), 0, `annotation io.farpage.regions="1000-2000-3000": "1000-2000-3000" is not a range of addresses; allowed: ` + regions},
		{local(KeyRegions, "1000-2001"), 0, `annotation io.farpage.regions="1000-2001": "1000-2001" does not begin and end on a page; allowed: ` + regions},
		{local(KeyRegions, "2000-2000"), 0, `annotation io.farpage.regions="2000-2000": "2000-2000" does not end behind its start; allowed: ` + regions},
		{local(KeyRegions, "0-100000000001000"), 0, `annotation io.farpage.regions="0-100000000001000": "0-100000000001000" lies beyond the addresses of programs, which end at 0x100000000000000; allowed: ` + regions},
		{local(KeyRegions, "1000-3000,2000-4000"), 0, `annotation io.farpage.regions="1000-3000,2000-4000": 0x1000-0x3000 and 0x2000-0x4000 overlap; allowed: ` + regions},
		{local(KeyRegions, "1000-2000,1000-2000"), 0, `annotation io.farpage.regions="1000-2000,1000-2000": 0x1000-0x2000 and 0x1000-0x2000 overlap; allowed: ` + regions},

		{local(KeyOnFailure, "ignore"), 0, `annotation io.farpage.on-failure="ignore": not a way to go on; allowed: ` + failures},
	}
	for _, c := range cases {
		t.Run(c.want, func(t *testing.T) {
			_, optedIn, err := Parse(c.annotations, c.limitBytes)
			var wrong *AnnotationError
			if !errors.As(err, &wrong) {
				t.Fatalf("error %v", err)
			}
			if err.Error() != c.want {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
			if _, there := c.annotations[KeyLocal]; optedIn != there {
				t.Errorf("optedIn %v", optedIn)
			}
			if _, there := c.annotations[wrong.Key]; !there {
				t.Errorf("key %q is not one of the annotations", wrong.Key)
			}
		})
	}
}

func TestALongValueIsNotRepeatedInFull(t *testing.T) {
	_, _, err := Parse(map[string]string{KeyLocal: strings.Repeat("x", 1<<20)}, 0)
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func TestTooManyRegionsAreRefused(t *testing.T) {
	_, _, err := Parse(map[string]string{KeyLocal: "1G", KeyRegions: strings.Repeat("1000-2000,", MaxRegions) + "1000-2000"}, 0)
	var wrong *AnnotationError
	if !errors.As(err, &wrong) || wrong.Problem != "too many ranges" {
		t.Errorf("error %v", err)
	}
}

func TestAKeyForOneContainerStandsAboveTheOneForThePod(t *testing.T) {
	pod := map[string]string{
		"io.farpage.local":        "1G",
		"io.farpage.local/redis":  "64Mi",
		"io.farpage.store/redis":  "fast",
		"io.farpage.low/other":    "10",
		"io.farpage.locl/redis":   "typo",
		"io.farpage.locl/other":   "typo of somebody else",
		"io.farpage.high/":        "90",
		"example.com/local":       "kept",
		"io.kubernetes.cri/redis": "kept",
	}
	before := maps.Clone(pod)
	// Map order must not matter: the override may come before or after.
	for range 50 {
		got := ForContainer(pod, "redis")
		want := map[string]string{
			"io.farpage.local":        "64Mi",
			"io.farpage.store":        "fast",
			"io.farpage.locl/redis":   "typo",
			"io.farpage.high/":        "90",
			"example.com/local":       "kept",
			"io.kubernetes.cri/redis": "kept",
		}
		if !maps.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	}
	if !maps.Equal(pod, before) {
		t.Error("the pod's annotations were changed")
	}
}

func TestAKeyForOneContainerOptsOnlyThatOneIn(t *testing.T) {
	pod := map[string]string{"io.farpage.local/redis": "64Mi"}
	for container, want := range map[string]bool{"redis": true, "sidecar": false} {
		_, optedIn, err := Parse(ForContainer(pod, container), 0)
		if err != nil || optedIn != want {
			t.Errorf("%s: opted in %v, error %v", container, optedIn, err)
		}
	}
}

// FuzzParse looks for texts that make Parse panic or let a senseless policy through.
func FuzzParse(f *testing.F) {
	f.Add("256Mi", "unlimited", "default", "85", "95", "all", "open", "io.farpage.x", gi)
	f.Add("50%", "10%", "a", "1", "100", "0x1000-2000,3000-4000", "closed", "", int64(-1))
	f.Add("9223372036854775807", "8388607Ti", "\x00", "", "-0", "-,-", "", "io.farpage.local/a", int64(1)<<62)
	f.Fuzz(func(t *testing.T, local, far, store, low, high, regions, onFailure, key string, limitBytes int64) {
		annotations := map[string]string{key: "x"}
		for k, v := range map[string]string{
			KeyLocal: local, KeyFar: far, KeyStore: store, KeyLow: low, KeyHigh: high, KeyRegions: regions, KeyOnFailure: onFailure,
		} {
			if v != "" { // so that defaults are met too
				annotations[k] = v
			}
		}
		p, optedIn, err := Parse(ForContainer(annotations, "a"), limitBytes)
		if err != nil {
			var wrong *AnnotationError
			if !errors.As(err, &wrong) || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("error %q", err)
			}
			return
		}
		if !optedIn {
			if !reflect.DeepEqual(p, Policy{}) {
				t.Fatalf("not opted in, but %+v", p)
			}
			return
		}
		if strings.HasPrefix(key, Prefix) && !known(key) && !strings.Contains(key, "/") {
			t.Fatalf("key %q was accepted", key)
		}
		if p.LocalBytes < MinLocalBytes || limitBytes > 0 && float64(p.LocalBytes) > 0.9000001*float64(limitBytes) {
			t.Fatalf("local budget %d of %d", p.LocalBytes, limitBytes)
		}
		if p.FarBytes < 0 && p.FarBytes != Unlimited {
			t.Fatalf("far limit %d", p.FarBytes)
		}
		if p.LowPercent < 1 || p.LowPercent >= p.HighPercent || p.HighPercent > 100 {
			t.Fatalf("watermarks %d and %d", p.LowPercent, p.HighPercent)
		}
		if p.Store == "" || strings.ContainsAny(p.Store, "/: \n\x00") || strings.HasPrefix(p.Store, ".") {
			t.Fatalf("store %q", p.Store)
		}
		if p.OnFailure != OnFailureOpen && p.OnFailure != OnFailureClosed {
			t.Fatalf("on-failure %q", p.OnFailure)
		}
		for i, r := range p.Regions {
			if r.Start >= r.End || r.Start%4096 != 0 || r.End%4096 != 0 || i > 0 && r.Start < p.Regions[i-1].End {
				t.Fatalf("regions %x", p.Regions)
			}
		}
	})
}
