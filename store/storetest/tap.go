package storetest

import "github.com/farpage/farpage/store"

// tap is a Space in which every page that was read goes through change before
// the caller sees it. An error of change is the reading's.
type tap struct {
	store.Space
	done   func(*store.Op)
	change func(h store.Handle, page []byte) error
	stored func(h store.Handle, page []byte) // a Put has succeeded; may be nil
}

// openTap opens a space of inner behind t.
func openTap(inner store.Store, cfg store.SpaceConfig, t *tap) (err error) {
	t.done = cfg.Done
	cfg.Done = t.ended
	t.Space, err = inner.Open(cfg)
	return err
}

func (t *tap) ended(op *store.Op) {
	switch {
	case op.Err != nil:
	case !op.Write:
		op.Err = t.change(op.Handle, op.Page)
	case t.stored != nil:
		t.stored(op.Handle, op.Page)
	}
	t.done(op)
}

func (t *tap) TryGet(h store.Handle, page []byte) (ok bool, err error) {
	if ok, err = t.Space.TryGet(h, page); ok && err == nil {
		err = t.change(h, page)
	}
	return ok && err == nil, err
}
