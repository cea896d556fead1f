package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

type history struct {
	Step   string  `json:"step"`
	Counts []count `json:"counts"`
}

func (h *handler) history(p *params) waiting {
	q := p.query(defaultSeries, maxNames, "name", "step")
	q.Step = cmp.Or(p.step(), store.Day) // kept, or summed, for every group
	if p.err != nil {
		return refused(p.err)
	}
	return askJSON(h, fmt.Sprintf("history %#v", q), func(ctx context.Context, r *reading) (history, error) {
		q, err := h.at(q, r)
		if err != nil {
			return history{}, err
		}
		counts, err := r.History(ctx, q)
		if err != nil {
			return history{}, err
		}
		if len(counts) > maxPoints {
			return history{}, tooLong(len(counts))
		}
		a := history{Step: stepName(q.Step), Counts: make([]count, len(counts))}
		for i, c := range counts {
			a.Counts[i] = count{Name: c.Name, Start: h.local(c.Start), N: c.N}
		}
		return a, nil
	}, nil)
}

func tooLong(points int) error {
	has := fmt.Sprint(points)
	if points == 0 { // more buckets than the store lists
		has = "too many"
	}
	return paramError(fmt.Sprintf("this history has %s points, at most %d are answered: shorten from to to, ask for a longer step or a smaller limit", has, maxPoints))
}

func stepName(s store.Step) string {
	return map[store.Step]string{store.Hour: "hour", store.Day: "day", store.Month: "month"}[s]
}

// series is a history in columns, as charts want it: every bucket of the range, and
// for each counter a number in each.
type series struct {
	Zone   string      `json:"zone"`
	Step   string      `json:"step"`
	From   *time.Time  `json:"from"`
	To     *time.Time  `json:"to"`
	Starts []time.Time `json:"starts"`
	Series []one       `json:"series"`
	More   bool        `json:"more"` // counters than these
}

// one is a counter of series.
type one struct {
	Name  string  `json:"name"`
	Label string  `json:"label,omitempty"` // what Config.Users gives for a user
	Total *int64  `json:"total"`           // null where there is no sum: of active users
	N     []int64 `json:"n"`
}

func (h *handler) series(p *params) waiting {
	q := p.query(defaultSeries, maxNamed, "name", "step")
	step := p.step()
	if q.From.IsZero() && q.last.n == 0 {
		p.fail("series needs a range, such as 24h, 30d or 13mo, or from and to")
	}
	if p.err != nil {
		return refused(p.err)
	}
	return askJSON(h, fmt.Sprintf("series %d %#v", step, q), func(ctx context.Context, r *reading) (series, error) {
		q, err := h.at(q, r)
		if err != nil {
			return series{}, err
		}
		if q.To.IsZero() {
			q.To = r.now.Truncate(time.Hour).Add(time.Hour) // the same for an hour
			r.ends = q.To
		}
		if !q.From.Before(q.To) {
			return series{}, paramError("from must lie before to, or before now")
		}
		return h.readSeries(ctx, r, q, step)
	}, func(ctx context.Context, a series) { h.nameUsers(ctx, a.Series) })
}

// readSeries reads what q selects, in the step, or when that is 0 in the finest that
// suits the range and is kept still.
func (h *handler) readSeries(ctx context.Context, r *reading, q store.Query, step store.Step) (series, error) {
	q.Step = step
	if step == 0 {
		q.Step = store.Month
		if long := q.To.Sub(q.From); long <= 16*24*time.Hour {
			q.Step = store.Hour
		} else if long <= 2*maxDays*24*time.Hour {
			q.Step = store.Day
		}
	}
	if step == 0 && q.Step == store.Hour && onlyQuotas(q) {
		q.Step = store.Day // those of a day have no hours
	}
	limit := q.Limit
	if len(q.Names) > 0 {
		q.Limit = 0 // they are limited
	} else {
		q.Limit++
	}
	counts, err := r.History(ctx, q)
	for bad := store.QueryError(""); step == 0 && q.Step < store.Month && errors.As(err, &bad); {
		q.Step++
		counts, err = r.History(ctx, q)
	}
	if err != nil {
		return series{}, err
	}
	a := series{Zone: h.zone().String(), Step: stepName(q.Step), From: h.local(q.From), To: h.local(q.To), Starts: h.store.Buckets(q.Step, q.From, q.To), Series: []one{}}
	if n := len(a.Starts) * max(len(q.Names), 1); a.Starts == nil || n > maxPoints {
		return series{}, tooLong(n)
	}
	index := make(map[int64]int, len(a.Starts))
	for i, t := range a.Starts {
		a.Starts[i], index[t.Unix()] = t.In(h.zone()), i
	}
	of := map[string]int{}
	add := func(name string) int {
		i, ok := of[name]
		if !ok {
			i = len(a.Series)
			of[name] = i
			a.Series = append(a.Series, one{Name: name, Total: new(int64), N: make([]int64, len(a.Starts))})
		}
		return i
	}
	for _, name := range q.Names {
		add(name)
	}
	if q.Step != store.Hour && onlyQuotas(q) {
		others, err := otherQuotas(ctx, r, q)
		if err != nil {
			return series{}, err
		}
		for _, c := range others { // a month may begin before the range does
			i := sort.Search(len(a.Starts), func(i int) bool { return a.Starts[i].After(c.Start) })
			c.Start = a.Starts[max(i-1, 0)]
			counts = append(counts, c)
		}
	}
	for _, c := range counts {
		if i, ok := index[c.Start.Unix()]; ok {
			s := &a.Series[add(c.Name)]
			s.N[i] += c.N
			*s.Total = min(*s.Total, math.MaxInt64-c.N) + c.N
		}
		if len(a.Series)*len(a.Starts) > maxPoints {
			return series{}, tooLong(len(a.Series) * len(a.Starts))
		}
	}
	if len(q.Names) == 0 {
		slices.SortStableFunc(a.Series, func(x, y one) int { return cmp.Or(cmp.Compare(*y.Total, *x.Total), cmp.Compare(x.Name, y.Name)) })
		if a.More = len(a.Series) > limit; a.More {
			a.Series = a.Series[:limit]
		}
	}
	for i, s := range a.Series {
		if s.Name == naming.ActiveDaily || s.Name == naming.ActiveMonthly {
			a.Series[i].Total = nil
		} else {
			*s.Total = min(*s.Total, naming.Max)
		}
	}
	return a, nil
}

// onlyQuotas tells whether q selects nothing else.
func onlyQuotas(q store.Query) bool {
	other := func(name string) bool { return !strings.HasPrefix(name, "quota.") }
	return !other(q.Prefix) || len(q.Names) > 0 && !slices.ContainsFunc(q.Names, other)
}

// otherQuotas are those that q selects by day or month, and that are not in these.
func otherQuotas(ctx context.Context, r *reading, q store.Query) ([]store.Count, error) {
	hourly, err := hourlyQuotas(ctx, r, q)
	if err != nil || q.Step == store.Month {
		return hourly, err
	}
	monthly, err := monthlyQuotas(ctx, r, q)
	return append(hourly, monthly...), err
}

// monthlyQuotas are the months of what q selects: quotas by the month have no days. Those
// that have some are by the day, and not among them.
func monthlyQuotas(ctx context.Context, r *reading, q store.Query) ([]store.Count, error) {
	q.Step = store.Month
	counts, err := r.History(ctx, q)
	if err != nil || len(counts) == 0 {
		return nil, err
	}
	daily := map[string]bool{}
	for _, c := range counts {
		daily[c.Name] = false
	}
	days, err := r.History(ctx, store.Query{Names: slices.Collect(maps.Keys(daily)), From: counts[0].Start, Step: store.Day})
	for _, c := range days {
		daily[c.Name] = true
	}
	return slices.DeleteFunc(counts, func(c store.Count) bool { return daily[c.Name] }), err
}

// hourlyQuotas are the hours of what q selects: quotas by the hour have no days of their
// own. What was refused of a quota has both, and is not among them.
func hourlyQuotas(ctx context.Context, r *reading, q store.Query) ([]store.Count, error) {
	q.Step = store.Hour
	counts, err := r.History(ctx, q)
	if bad := store.QueryError(""); errors.As(err, &bad) { // some are not kept any more
		if q.From = r.now.AddDate(0, 0, -30); !q.From.Before(q.To) {
			return nil, nil
		}
		if counts, err = r.History(ctx, q); errors.As(err, &bad) {
			return nil, nil
		}
	}
	return slices.DeleteFunc(counts, func(c store.Count) bool { return strings.HasSuffix(c.Name, ".refused") }), err
}

// nameUsers gives the users among list the names that the application has for them.
func (h *handler) nameUsers(ctx context.Context, list []one) {
	id := func(name string) string {
		if group, subject, measure := store.SplitName(name); group == "user" && measure == "requests" {
			return subject
		}
		return ""
	}
	ids := make([]string, len(list))
	for i, s := range list {
		ids[i] = id(s.Name)
	}
	names := h.namesOf(ctx, ids)
	for i := range list {
		list[i].Label = names[ids[i]]
	}
}

// namesOf returns what Config.Users says of ids, but of those that are nobody's. It is
// not worth an answer: whatever goes wrong, there are no names.
func (h *handler) namesOf(ctx context.Context, ids []string) map[string]string {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		return id == "" || naming.Own(id) // "(other)" is nobody
	})
	if h.users == nil || len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	names, _, err := ask(h.names, strings.Join(ids, "\n"), func(ctx context.Context) (map[string]string, error) {
		return h.users(ctx, ids)
	})(ctx)
	if err != nil {
		return nil
	}
	asked := make(map[string]string, len(ids)) // it may say more
	for _, id := range ids {
		asked[id] = names[id]
	}
	return asked
}
