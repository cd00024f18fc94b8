package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// What stands for an annotation that is not there.
const (
	DefaultStore       = "default"
	DefaultLowPercent  = 85
	DefaultHighPercent = 95
)

// Bounds on what an annotation may ask for. The agent's configuration may draw
// narrower ones.
const (
	// MinLocalBytes is the smallest local budget. Below it there is nothing left to
	// choose from: a C program that does nothing keeps some 100 KiB resident.
	MinLocalBytes = 1 << 20
	// MaxLocalPercent bounds the budget by the memory limit, in percent of it. What is
	// left is for page cache, the kernel's own and the overshoot of a moment.
	MaxLocalPercent = 90
	// MaxRegions is how many address ranges io.farpage.regions may name.
	MaxRegions = 256

	maxStoreNameBytes = 63
	regionAlignment   = 4096    // bytes: a page
	regionEnd         = 1 << 56 // end of user addresses with five-level page tables (Documentation/arch/x86/x86_64/mm.rst)
)

// Parse turns a container's annotations into its policy. Annotations of others are
// not looked at. memoryLimitBytes is the container's memory limit in bytes; 0 or less
// says that it has none.
//
// optedIn tells whether io.farpage.local is there, beside an error too. Without any
// annotation of farpage it is false and the error nil. An annotation that is wrong in
// any way gives an *AnnotationError; the policy counts only without one. On Kubernetes
// ForContainer comes first.
func Parse(annotations map[string]string, memoryLimitBytes int64) (p Policy, optedIn bool, err error) {
	_, optedIn = annotations[KeyLocal]
	if err := checkKeys(annotations, optedIn); err != nil || !optedIn {
		return Policy{}, optedIn, err
	}
	limit := max(memoryLimitBytes, 0)
	for _, read := range []func(*Policy, map[string]string, int64) error{
		readLocal, readFar, readStore, readWatermarks, readRegions, readOnFailure,
	} {
		if err := read(&p, annotations, limit); err != nil {
			return Policy{}, optedIn, err
		}
	}
	return p, optedIn, nil
}

// checkKeys refuses keys of farpage that do not exist, and keys without the one that
// opts in. Of several the first by name is reported, so that the message is the same
// at each try.
func checkKeys(annotations map[string]string, optedIn bool) error {
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, Prefix) {
			continue
		}
		if base, _, suffixed := strings.Cut(key, "/"); suffixed && known(base) {
			return &AnnotationError{
				Key: key, Value: annotations[key],
				Problem: "a /CONTAINER behind the key works on Kubernetes only, with the name of one of the pod's containers",
				Allowed: base,
			}
		}
		if !known(key) {
			return &AnnotationError{
				Key: key, Value: annotations[key],
				Problem: "there is no such annotation",
				Allowed: strings.Join(keys, ", "),
			}
		}
		if !optedIn {
			return &AnnotationError{
				Key: key, Value: annotations[key],
				Problem: KeyLocal + " is missing, and only it opts a container in",
				Allowed: "with " + KeyLocal + " (such as 256Mi) beside it",
			}
		}
	}
	return nil
}

// readLocal reads the local budget.
func readLocal(p *Policy, annotations map[string]string, limitBytes int64) error {
	value := annotations[KeyLocal]
	wrong := func(problem string) error {
		allowed := SizeForms + ShareForm + "; from 1Mi"
		if limitBytes > 0 {
			most, _ := percentOf(limitBytes, MaxLocalPercent)
			allowed += fmt.Sprintf(" to %d %% of the memory limit (%d bytes)", MaxLocalPercent, most)
		}
		return &AnnotationError{Key: KeyLocal, Value: value, Problem: problem, Allowed: allowed}
	}
	bytes, problem := sizeOrShare(value, limitBytes)
	if problem != "" {
		return wrong(problem)
	}
	if bytes < MinLocalBytes {
		return wrong(fmt.Sprintf("a budget of %d bytes is too small", bytes))
	}
	if limitBytes > 0 {
		if most, _ := percentOf(limitBytes, MaxLocalPercent); bytes > most {
			return wrong(fmt.Sprintf("%d bytes are more than %d %% of the memory limit of %d bytes", bytes, MaxLocalPercent, limitBytes))
		}
	}
	p.LocalBytes = bytes
	return nil
}

// readFar reads the far limit. It comes after readLocal, which its default needs.
func readFar(p *Policy, annotations map[string]string, limitBytes int64) error {
	value, given := annotations[KeyFar]
	switch {
	case !given && limitBytes == 0, value == "unlimited":
		p.FarBytes = Unlimited
		return nil
	case !given:
		p.FarBytes = limitBytes - p.LocalBytes
		return nil
	}
	bytes, problem := sizeOrShare(value, limitBytes)
	if problem != "" {
		return &AnnotationError{
			Key: KeyFar, Value: value, Problem: problem,
			Allowed: SizeForms + ShareForm + ", or unlimited",
		}
	}
	p.FarBytes = bytes
	return nil
}

// sizeOrShare reads a size, or N% of the memory limit. problem, when not empty, says
// what is wrong with the value.
func sizeOrShare(value string, limitBytes int64) (bytes int64, problem string) {
	share, isShare := strings.CutSuffix(value, "%")
	if !isShare {
		return readSize(value)
	}
	percent, err := strconv.ParseInt(share, 10, 64)
	if share == "" || leadingDigits(share) != share || err != nil {
		return 0, "not a percentage: it takes a whole number before the %"
	}
	if limitBytes == 0 {
		return 0, "a percentage needs a memory limit, and this container has none"
	}
	bytes, fits := percentOf(limitBytes, percent)
	if !fits {
		return 0, tooLarge
	}
	return bytes, ""
}

// readStore reads the store's name. Whether there is such a store the agent knows.
func readStore(p *Policy, annotations map[string]string, _ int64) error {
	name, given := annotations[KeyStore]
	if !given {
		p.Store = DefaultStore
		return nil
	}
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || len(name) > maxStoreNameBytes ||
		!strings.Contains(first, name[:1]) || strings.Trim(name, first+"._-") != "" {
		return &AnnotationError{
			Key: KeyStore, Value: name,
			Problem: "not the name of a store",
			Allowed: fmt.Sprintf("a name in the agent's configuration: letters, digits, '.', '_' and '-', a letter or digit first, %d at most", maxStoreNameBytes),
		}
	}
	p.Store = name
	return nil
}

// readWatermarks reads where eviction starts and ends.
func readWatermarks(p *Policy, annotations map[string]string, _ int64) error {
	const allowed = "a whole number of percent of the budget, without %; low from 1, high to 100, low below high"
	p.LowPercent, p.HighPercent = DefaultLowPercent, DefaultHighPercent
	for _, mark := range []struct {
		key     string
		percent *int
	}{{KeyLow, &p.LowPercent}, {KeyHigh, &p.HighPercent}} {
		value, given := annotations[mark.key]
		if !given {
			continue
		}
		percent, err := strconv.Atoi(value)
		if err != nil || leadingDigits(value) != value || percent < 1 || percent > 100 {
			return &AnnotationError{Key: mark.key, Value: value, Problem: "not a watermark", Allowed: allowed}
		}
		*mark.percent = percent
	}
	if p.LowPercent >= p.HighPercent {
		key, other := KeyLow, fmt.Sprintf("%s is %d", KeyHigh, p.HighPercent)
		if _, given := annotations[KeyLow]; !given {
			key, other = KeyHigh, fmt.Sprintf("%s is %d without an annotation", KeyLow, p.LowPercent)
		} else if _, given := annotations[KeyHigh]; !given {
			other += " without an annotation"
		}
		return &AnnotationError{Key: key, Value: annotations[key], Problem: "low is not below high: " + other, Allowed: allowed}
	}
	return nil
}

// readRegions reads the address ranges. The policy holds them in ascending order.
func readRegions(p *Policy, annotations map[string]string, _ int64) error {
	value, given := annotations[KeyRegions]
	if !given || value == "all" {
		return nil
	}
	wrong := func(problem string) error {
		return &AnnotationError{
			Key: KeyRegions, Value: value, Problem: problem,
			Allowed: fmt.Sprintf("all, or START-END[,START-END...]: hexadecimal addresses, multiples of %#x, end not included, no two overlapping, %d ranges at most", regionAlignment, MaxRegions),
		}
	}
	texts := strings.SplitN(value, ",", MaxRegions+1)
	if len(texts) > MaxRegions {
		return wrong("too many ranges")
	}
	regions := make([]Range, 0, len(texts))
	for _, text := range texts {
		startText, endText, _ := strings.Cut(text, "-")
		start, startOK := parseAddress(startText)
		end, endOK := parseAddress(endText)
		switch {
		case !startOK || !endOK:
			return wrong(shown(text) + " is not a range of addresses")
		case start%regionAlignment != 0 || end%regionAlignment != 0:
			return wrong(shown(text) + " does not begin and end on a page")
		case start >= end:
			return wrong(shown(text) + " does not end behind its start")
		case end > regionEnd:
			return wrong(fmt.Sprintf("%s lies beyond the addresses of programs, which end at %#x", shown(text), uint64(regionEnd)))
		}
		regions = append(regions, Range{Start: start, End: end})
	}
	slices.SortFunc(regions, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	for i := 1; i < len(regions); i++ {
		if before := regions[i-1]; regions[i].Start < before.End {
			return wrong(fmt.Sprintf("%#x-%#x and %#x-%#x overlap", before.Start, before.End, regions[i].Start, regions[i].End))
		}
	}
	p.Regions = regions
	return nil
}

// parseAddress reads a hexadecimal address, with or without 0x.
func parseAddress(text string) (address uint64, ok bool) {
	address, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
	return address, err == nil
}

// readOnFailure reads what becomes of a container that cannot be set up.
func readOnFailure(p *Policy, annotations map[string]string, _ int64) error {
	value, given := annotations[KeyOnFailure]
	switch {
	case !given:
		p.OnFailure = OnFailureOpen
	case value == OnFailureOpen || value == OnFailureClosed:
		p.OnFailure = value
	default:
		return &AnnotationError{
			Key: KeyOnFailure, Value: value,
			Problem: "not a way to go on",
			Allowed: OnFailureOpen + " (the container starts unmanaged) or " + OnFailureClosed + " (it does not start)",
		}
	}
	return nil
}
