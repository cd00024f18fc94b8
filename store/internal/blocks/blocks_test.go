package blocks

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestIndexAgreesWithASortedSlice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var x index
		in := map[int64]bool{}
		top := int64(1) << r.IntN(20)
		for range 300 {
			i := r.Int64N(top)
			in[i] = r.IntN(2) == 0
			x.put(i, in[i])
			var sorted []int64
			for k, member := range in {
				if member {
					sorted = append(sorted, k)
				}
			}
			slices.Sort(sorted)
			first, ok := x.first()
			last, okLast := x.last()
			if ok != (len(sorted) > 0) || okLast != ok || ok && (first != sorted[0] || last != sorted[len(sorted)-1]) {
				t.Fatalf("first %d, last %d (%v), want those of %v", first, last, ok, sorted)
			}
		}
	}
}

func TestIndexReachesTheLastGroupOfTheLargestFile(t *testing.T) {
	var x index
	for _, i := range []int64{1 << 28, 3, 64, 4095, 4096} {
		x.add(i)
	}
	if last, _ := x.last(); last != 1<<28 {
		t.Errorf("the last one is %d", last)
	}
	x.remove(1 << 28)
	if last, _ := x.last(); last != 4096 {
		t.Errorf("without it the last one is %d", last)
	}
}

// model is what a Map must agree with.
type model struct {
	t       *rapid.T
	m       *Map
	limit   int64
	end     int64
	owner   map[int64]Owner // of blocks in use
	at      map[Owner]*int64
	leaving [][]Run
	settled bool
	retired map[int64]bool
}

func (d *model) check() {
	var idle, away int64
	for at := range d.m.high {
		if !d.m.touched(at) {
			continue
		}
		g := d.m.group(at)
		if g.idle&g.used != 0 {
			d.t.Fatalf("group %d: blocks are idle and in use", at)
		}
		for i := range int64(Group) {
			block := at*Group + i
			if g.idle>>i&1 != 0 {
				idle++
			}
			owner := g.owners[i]
			if (owner != nobody) != (g.used>>i&1 != 0) {
				d.t.Fatalf("block %d: owner %d, used %v", block, owner, g.used>>i&1)
			}
			switch {
			case owner == leaving:
				away++
			case owner == Reserved:
				if block != 0 && !d.retired[block] {
					d.t.Fatalf("block %d is reserved", block)
				}
			case owner != d.owner[block]:
				d.t.Fatalf("block %d is %d's, want %d's", block, owner, d.owner[block])
			}
		}
	}
	if idle != d.m.Idle() || away != d.m.leavings || d.m.Used() != int64(len(d.owner)) {
		d.t.Fatalf("idle %d, leaving %d, used %d, want %d, %d, %d", d.m.Idle(), d.m.leavings, d.m.Used(), idle, away, len(d.owner))
	}
}

func (d *model) alloc(user Owner) {
	if d.at[user] == nil {
		none := int64(-1)
		d.at[user] = &none
	}
	block, ok := d.m.Alloc(user, d.at[user])
	if !ok {
		room := d.limit - 1 - int64(len(d.owner)) - d.m.leavings - d.m.Retired()
		if room > 0 && d.settled && d.end <= d.limit {
			d.t.Fatalf("no block, but there is room for %d", room)
		}
		return
	}
	d.take(user, block)
}

// take is for a block that the Map has given out.
func (d *model) take(user Owner, block int64) {
	switch {
	case d.owner[block] != nobody:
		d.t.Fatalf("block %d is %d's already", block, d.owner[block])
	case block < 1 || block >= d.limit:
		d.t.Fatalf("block %d is outside of 1 to %d", block, d.limit-1)
	case !d.settled && block < d.end:
		d.t.Fatalf("block %d may be claimed yet", block)
	case d.retired[block]:
		d.t.Fatalf("block %d is retired", block)
	}
	for _, runs := range d.leaving {
		for _, run := range runs {
			if block >= run.First && block < run.First+run.Count {
				d.t.Fatalf("block %d is leaving", block)
			}
		}
	}
	d.owner[block] = user
}

func (d *model) some() (block int64, ok bool) {
	if len(d.owner) == 0 {
		return 0, false
	}
	var sorted []int64
	for block := range d.owner {
		sorted = append(sorted, block)
	}
	slices.Sort(sorted)
	return sorted[rapid.IntRange(0, len(sorted)-1).Draw(d.t, "which")], true
}

func TestMapAgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &model{
			t: t, owner: map[int64]Owner{}, at: map[Owner]*int64{}, retired: map[int64]bool{},
			end: rapid.Int64Range(1, 1000).Draw(t, "end"), limit: rapid.Int64Range(2, 1000).Draw(t, "limit"),
		}
		d.m = New(d.end, d.limit)
		d.settled = d.m.Settled()
		users := rapid.SampledFrom([]Owner{1, 2, 3})
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { d.check() },
			"alloc": func(t *rapid.T) {
				user := users.Draw(t, "user")
				for range rapid.IntRange(1, 200).Draw(t, "count") {
					d.alloc(user)
				}
			},
			"free": func(t *rapid.T) {
				for range rapid.IntRange(1, 50).Draw(t, "count") {
					block, ok := d.some()
					if !ok {
						return
					}
					if !d.m.Free(d.owner[block], block) {
						t.Fatalf("block %d cannot be freed", block)
					}
					delete(d.owner, block)
				}
			},
			"free another's": func(t *rapid.T) {
				if block, ok := d.some(); ok && d.m.Free(d.owner[block]+1, block) {
					t.Fatalf("block %d was freed by somebody else", block)
				}
			},
			"alloc idle": func(t *rapid.T) {
				user := users.Draw(t, "user")
				idle := d.m.Idle()
				block, ok := d.m.AllocIdle(user)
				switch {
				case !ok && d.settled && d.end <= d.limit && idle > 0:
					t.Fatalf("%d blocks are idle, and there is none", idle)
				case !ok:
					return
				case d.m.Idle() != idle-1:
					t.Fatalf("block %d was not idle", block)
				}
				d.take(user, block)
			},
			"give": func(t *rapid.T) {
				if block, ok := d.some(); ok {
					to := users.Draw(t, "user")
					if !d.m.Give(d.owner[block], to, block) {
						t.Fatalf("block %d cannot be given on", block)
					}
					d.owner[block] = to
				}
			},
			"free all": func(t *rapid.T) {
				user := users.Draw(t, "user")
				for at := d.m.FreeAll(user, 0); at != 0; {
					at = d.m.FreeAll(user, at)
				}
				for block, owner := range d.owner {
					if owner == user {
						delete(d.owner, block)
					}
				}
			},
			"retire": func(*rapid.T) {
				if block, ok := d.some(); ok {
					d.m.Retire(block)
					delete(d.owner, block)
					d.retired[block] = true
				}
			},
			"cancel": func(*rapid.T) {
				if block, ok := d.some(); ok {
					d.m.Cancel(block)
					delete(d.owner, block)
				}
			},
			"claim": func(t *rapid.T) {
				user, block := users.Draw(t, "user"), rapid.Int64Range(-1, 1100).Draw(t, "block")
				if d.settled {
					return
				}
				_, has := d.owner[block]
				if ok := d.m.Claim(user, block); ok {
					if has || block < 1 || block >= d.end || d.retired[block] {
						t.Fatalf("block %d was claimed", block)
					}
					d.owner[block] = user
				}
			},
			"settle": func(*rapid.T) {
				d.m.Settle()
				d.settled = true
			},
			"leave": func(t *rapid.T) {
				should := d.m.ShouldLeave()
				runs := d.m.Leave()
				if (len(runs) > 0) != should {
					t.Fatalf("ShouldLeave says %v, Leave finds %v", should, runs)
				}
				if should {
					d.leaving = append(d.leaving, runs)
				}
			},
			"return": func(t *rapid.T) {
				if k := len(d.leaving); k > 0 {
					d.m.Return(d.leaving[k-1], rapid.Bool().Draw(t, "done"))
					d.leaving = d.leaving[:k-1]
				}
			},
		})
	})
}

func TestWhatIsStoredTogetherLiesTogether(t *testing.T) {
	m := New(1, 1<<30)
	a, b := int64(-1), int64(-1)
	var of [2][]int64
	for range 200 {
		for i, at := range []*int64{&a, &b} {
			block, ok := m.Alloc(Owner(i+1), at)
			if !ok {
				t.Fatal("no room")
			}
			of[i] = append(of[i], block)
		}
	}
	for i, blocks := range of {
		if n := len(Runs(blocks)); n > 5 {
			t.Errorf("200 blocks of user %d lie in %d runs", i+1, n)
		}
	}
}

func TestAFileWithHolesIsFilledBeforeItGrowsForEver(t *testing.T) {
	m := New(1, 1<<30)
	r := rand.New(rand.NewPCG(3, 4))
	var blocks []int64
	at := int64(-1)
	for range 20000 {
		block, _ := m.Alloc(1, &at)
		blocks = append(blocks, block)
	}
	for range 200000 {
		i := r.IntN(len(blocks))
		m.Free(1, blocks[i])
		block, ok := m.Alloc(1, &at)
		if !ok {
			t.Fatal("no room")
		}
		blocks[i] = block
		if runs := m.Leave(); runs != nil {
			m.Return(runs, true)
		}
	}
	if n := m.high * Group; n > 2*20000+Slack+Group {
		t.Errorf("20000 blocks in use, and the file has %d", n)
	}
	if n := m.Idle(); n > 20000/2+Slack+1 {
		t.Errorf("20000 blocks in use, and %d are idle", n)
	}
}
