package tlsrpt

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxResults bounds the results of a Summary. The registry has eleven; strangers write what they like.
const maxResults = 50

// OtherResult is what a Summary counts results as, of which it has too many.
const OtherResult ResultType = "other"

// A Summary adds up reports. The zero value is ready to use. It is not safe for concurrent use.
type Summary struct {
	Reports    int
	Successful int64 // sessions
	Failed     int64 // sessions
	// ByResult has the sessions that failed, by result. Sessions without details in their report are not in it.
	ByResult map[ResultType]int64
	// ByPolicy has all sessions, by the type of policy.
	ByPolicy map[PolicyType]int64
}

// Add takes in a report.
func (s *Summary) Add(r *Report) {
	s.Reports++
	ok, failed := r.Total()
	s.Successful, s.Failed = add(s.Successful, ok), add(s.Failed, failed)
	if s.ByResult == nil {
		s.ByResult, s.ByPolicy = map[ResultType]int64{}, map[PolicyType]int64{}
	}
	for _, p := range r.Policies {
		t := PolicyType(printable(strings.ToLower(string(p.Policy.Type)), 64))
		if t != PolicyTLSA && t != PolicySTS && t != PolicyNone {
			t = PolicyType(OtherResult)
		}
		s.ByPolicy[t] = add(s.ByPolicy[t], add(p.Successful, p.Failed))
		for _, f := range p.Failures {
			k := ResultType(printable(strings.ToLower(string(f.Result)), 64))
			if _, ok := s.ByResult[k]; k == "" || !ok && len(s.ByResult) >= maxResults {
				k = OtherResult
			}
			s.ByResult[k] = add(s.ByResult[k], f.Sessions)
		}
	}
}

// A Result is the number of sessions that failed in one way.
type Result struct {
	Result   ResultType
	Sessions int64
}

// Results returns ByResult, the most frequent first.
func (s *Summary) Results() []Result {
	list := make([]Result, 0, len(s.ByResult))
	for k, n := range s.ByResult {
		list = append(list, Result{k, n})
	}
	slices.SortFunc(list, func(a, b Result) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(a.Result, b.Result))
	})
	return list
}

// String tells it in a line: "3 reports: 5326 sessions successful, 303 failed (starttls-not-supported 200, ...)".
func (s *Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d reports: %d sessions successful, %d failed", s.Reports, s.Successful, s.Failed)
	for i, r := range s.Results() {
		b.WriteString([]string{" (", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%s %d", r.Result, r.Sessions)
	}
	if len(s.ByResult) > 0 {
		b.WriteString(")")
	}
	return b.String()
}
