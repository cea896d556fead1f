package fold

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

const (
	// It also locks: who finds new subjects decides alone about all of them.
	sqlSubjects = `INSERT INTO usage_meta AS m (name, value) VALUES ('subjects', '') ON CONFLICT (name) DO UPDATE SET value = m.value RETURNING value`
	// Of a capped group: stems, and the whole of names that have no other subject.
	sqlKnownSubjects = `SELECT DISTINCT CASE WHEN {stem key} IN ('', ?, ?, ?, 'api.requests.') THEN key ELSE {stem key} END FROM usage_metrics WHERE key >= ? AND key < ?`
)

// caps are how many subjects a group may have in the database.
type caps struct {
	of    map[string]int           // by group; one that is not there has no cap
	known atomic.Pointer[subjects] // that the database has; nil: not known
}

// subjects are those of the capped groups that the database has. They are remembered, so
// that a fold of known names asks nothing; token tells whether another instance has found
// more since. What is published never changes.
type subjects struct {
	token string
	known map[string]bool
	count map[string]int    // by budget
	other map[string]int    // measures of (other), by group
	round map[string]lookup // for idle ones, by budget
}

// areas is the budget of areas, which are subjects of "api" and may be made of what a
// client sends: they take no place of routes.
const areas = "api.requests"

// budgetOf returns what a name takes a place of: its group, or areas.
func budgetOf(name string) string {
	group, subject, _ := naming.Split(name)
	if naming.Area(group, subject) {
		return areas
	}
	return group
}

// places is how many subjects have a place in a budget.
func (c *caps) places(budget string) int {
	if budget == areas {
		return c.of["api"]
	}
	return c.of[budget]
}

// subjectOf returns the group of a name, and what a cap of it counts: the stem, or
// the name where that is an area, has no subject or is of (other).
func subjectOf(name string) (group, subject string) {
	group, subject, _ = naming.Split(name)
	if subject == "" || subject == naming.Other || naming.Area(group, subject) {
		return group, name
	}
	return group, naming.Stem(name)
}

// move moves what has a new subject beyond its group's cap to (other). Only
// here is it known what is new: an instance knows no other's names.
//
// What was not counted for a month makes room for what is new: see makeRoom.
func (c *caps) move(ctx context.Context, tx *database.Tx, sums *sums) error {
	if len(c.of) == 0 {
		return nil
	}
	known := c.known.Load()
	isNew := func(name string) bool {
		group, subject := subjectOf(name)
		if _, capped := c.of[group]; !capped || known != nil && known.known[subject] {
			return false
		}
		_, subject, _ = naming.Split(name)
		return subject == naming.Other || !naming.Reserved(subject)
	}
	var names []string
	for name := range sums.names {
		if isNew(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	var token string
	if err := tx.Get(ctx, &token, sqlSubjects); err != nil {
		return err
	}
	if known == nil || known.token != token {
		var err error
		if known, err = c.read(ctx, tx, token); err != nil {
			return err
		}
	}
	next := &subjects{token: token, known: maps.Clone(known.known), count: maps.Clone(known.count), other: maps.Clone(known.other), round: maps.Clone(known.round)}
	known = next
	found := false
	looked := map[string]bool{} // in which budgets for idle ones, in this fold
	slices.Sort(names)
	for _, name := range names {
		if !isNew(name) { // it was read, or another measure brought it
			continue
		}
		group, subject := subjectOf(name)
		budget := budgetOf(name)
		_, of, measure := naming.Split(name)
		wanted := of != naming.Other && (budget != areas || measure != naming.Other)
		if wanted && next.count[budget] >= c.places(budget) && !looked[budget] {
			looked[budget] = true
			if err := c.makeRoom(ctx, tx, sums, next, budget); err != nil {
				return err
			}
		}
		if wanted && next.count[budget] < c.places(budget) {
			next.add(group, subject)
			found = true
			continue
		}
		before := len(next.known)
		if to := next.otherOf(name); to != name {
			sums.move(name, to)
		}
		found = found || len(next.known) > before
	}
	if found {
		next.token = database.NewID()
		if err := tx.SetMeta(ctx, "subjects", next.token); err != nil {
			return err
		}
	}
	sums.subjects = next
	return nil
}

// add notes a subject that is there. Those of usagekit's own take no one's place.
func (k *subjects) add(group, subject string) {
	k.known[subject] = true
	switch _, of, measure := naming.Split(subject); {
	case of == naming.Other && (naming.Summed(measure) || measure == naming.Other): // beside the others
	case of == naming.Other:
		k.other[group]++
	case naming.Reserved(of), naming.Derived(subject), of == "requests" && measure == naming.Other:
	default:
		k.count[budgetOf(subject)]++
	}
}

// otherOf is the name that counts for one beyond the cap.
func (k *subjects) otherOf(name string) string {
	group, subject, measure := naming.Split(name)
	if naming.Area(group, subject) {
		return "api.requests." + naming.Other
	}
	name = group + "." + naming.Other + "." + measure
	if naming.Summed(measure) || measure == naming.Other || k.known[name] { // what sums are derived from always has its place
		return name
	}
	if k.other[group] >= naming.OtherMeasures {
		return group + "." + naming.Other + "." + naming.Other
	}
	k.add(group, name)
	return name
}

// read reads the subjects of all capped groups.
func (c *caps) read(ctx context.Context, tx *database.Tx, token string) (*subjects, error) {
	k := &subjects{token: token, known: map[string]bool{}, count: map[string]int{}, other: map[string]int{}, round: map[string]lookup{}}
	for _, group := range slices.Sorted(maps.Keys(c.of)) {
		var list []string
		text := sqlKnownSubjects
		if group == "other" {
			text += " OR " + tx.Strpos + "(key, '.') = 0"
		}
		err := tx.Select(ctx, &list, text, group+".", group+"..", group+"."+naming.Other+".", group+".", group+"/")
		if err != nil {
			return nil, err
		}
		for _, subject := range list {
			k.add(group, subject)
		}
	}
	return k, nil
}
