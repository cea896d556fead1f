package fold

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

const (
	foldBytes  = 32 << 20    // of payload in one fold: names that come again cost no more rows
	foldDepth  = 64          // batches of one writer in one fold
	sweepEvery = time.Minute // a fold asks for writers that were not seen for days
)

const sqlPayloads = `SELECT i.writer, i.seq, i.payload FROM {v} JOIN usage_inbox i ON i.writer = v.writer AND i.seq = v.seq`

// waiting is a batch in the inbox, and where its writer's guard stands.
type waiting struct {
	Writer  string
	Guard   int64
	Sum     []byte
	Seq     int64
	Opened  int64
	Size    int
	Payload []byte
}

func (w waiting) name() string { return w.Writer + "/" + strconv.FormatInt(w.Seq, 10) }

// choice is what one fold takes: batches by writer, in order, without their payloads.
type choice struct {
	list   []waiting
	more   bool // the next fold has something to do
	others bool // the batches of other writers wait, which nothing is known against
	again  bool // it is a refused batch that is tried again, alone
	left   bool // some that are refused wait behind
}

// choose picks what one fold takes: the first batch of every writer, then the second
// of each, oldest first, up to a size in bytes but one at least. Writers whose first one
// was refused come behind (see turn).
func (f *Folder) choose(ctx context.Context, tx *database.Tx, m memory, seen int64) (c choice, err error) {
	var list []waiting
	if err := tx.Select(ctx, &list, tx.Waiting, foldDepth, seen); err != nil {
		return choice{}, err
	}
	c = f.refused.turn(list, tx.OneWriter || seen == 0, m.suspect, time.Now())
	if list = c.list; len(list) == 0 || c.again {
		return c, nil
	}
	rank, last := make([]int, len(list)), 0
	order := make([]int, len(list))
	for i := range list {
		order[i] = i
		if i > 0 && list[i].Writer == list[i-1].Writer {
			rank[i] = rank[i-1] + 1
		}
		last = max(last, rank[i]+1)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(list[a].Opened, list[b].Opened))
	})
	n, size := 0, m.size
	for n < len(order) && (n == 0 || size >= list[order[n]].Size) {
		size -= list[order[n]].Size
		n++
	}
	c.more = n < len(order) || last >= foldDepth
	c.others = list[0].Writer != list[len(list)-1].Writer
	order = order[:n]
	slices.Sort(order)
	c.list = make([]waiting, n)
	for i, o := range order {
		c.list[i] = list[o]
	}
	return c, nil
}

// payloads reads those of some batches, in their order.
func payloads(ctx context.Context, tx *database.Tx, list []waiting) ([][]byte, error) {
	type id struct {
		writer string
		seq    int64
	}
	writers, seqs := make([]string, len(list)), make([]int64, len(list))
	at := make(map[id]int, len(list))
	for i, w := range list {
		writers[i], seqs[i] = w.Writer, w.Seq
		at[id{w.Writer, w.Seq}] = i
	}
	var found []struct {
		Writer  string
		Seq     int64
		Payload []byte
	}
	if err := tx.Select(ctx, &found, sqlPayloads, database.List{{Name: "writer", Texts: writers}, {Name: "seq", Numbers: seqs}}); err != nil {
		return nil, err
	}
	if len(found) < len(list) { // another fold, which this one overlaps, took them
		return nil, errConflict
	}
	payloads := make([][]byte, len(list))
	for _, f := range found {
		payloads[at[id{f.Writer, f.Seq}]] = f.Payload
	}
	return payloads, nil
}
