package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// row is a row of the matrix.
type row struct {
	number int
	title  string
	modes  []mode
	when   when
	run    func(*trial)
}

// when is in which form a row is run.
type when int

const (
	long  when = iota // in the long form
	short             // in both
	alone             // in the long form, with no other row beside it
)

func matrix() []row {
	S, M, Q, QS, X := inSpool, inMemory, onSQLite, sqliteSpool, twice
	return []row{
		{1, "no fault", []mode{S, M, Q, X}, short, noFault},
		{2, "PostgreSQL stops and starts", []mode{S, M, X}, short, restart},
		{3, "PostgreSQL is killed", []mode{S, M, X}, long, killServer},
		{4, "PostgreSQL stands still", []mode{S, M, X}, long, pauseServer},
		{5, "the fold's leader stands still", []mode{X}, long, pauseLeader},
		{6, "connections are terminated", []mode{S, M, X}, short, terminate},
		{7, "SIGTERM under load", []mode{S, M, Q}, long, terminateUnderLoad},
		{8, "SIGTERM without the database", []mode{S, M}, long, terminateWithoutDatabase},
		{9, "kill -9", []mode{S, QS}, short, killPrograms},
		{10, "kill -9 without the database", []mode{S}, long, killWithoutDatabase},
		{11, "COMMIT is cut off", []mode{S, M, X}, short, cutCommits},
		{12, "refused, then cut off", []mode{S, M}, short, refuseStatements},
		{13, "kill -9 between COMMIT and its answer", []mode{S}, long, killAfterCommit},
		{14, "four programs, the same names", []mode{S, M}, short, fourPrograms},
		{15, "a slow line", []mode{S, M}, long, slowLine},
		{16, "the spool's disk is full", []mode{S}, long, fullSpool},
		{17, "the spool taken away", []mode{S}, long, spoolTakenAway},
		{18, "the spool damaged", []mode{S}, long, corruptSpool},
		{19, "the spool shared and copied", []mode{S}, long, copiedSpool},
		{20, "refused by the database", []mode{S, M}, long, refusedByDatabase},
		{21, "kills with synchronous_commit off", []mode{S, M}, long, killUnsynchronous},
		{22, "hostile input", []mode{S, M, Q}, short, hostileInput},
		{23, "a million names", []mode{S, M, Q}, alone, millionNames},
		{24, "every kind of response", []mode{S, M}, short, everyResponse},
		{25, "other clocks", []mode{S, M, Q}, long, otherClocks},
		{26, "SQLite locked, killed", []mode{Q, QS}, long, troubledSQLite},
		{27, "twenty first starts at once", []mode{S}, long, firstStarts},
		{28, "no connection left", []mode{S, M}, long, noConnectionLeft},
		{29, "a crash at every step", []mode{S}, long, crashAtEveryStep},
		{30, "a snapshot stays open", []mode{S, X}, alone, openSnapshot},
		{31, "PgBouncer, shared", []mode{M, X}, long, sharedPgBouncer},
		{32, "two leaders", []mode{M}, short, twoLeaders},
		{33, "batches that cannot be folded", []mode{S}, short, badBatches},
		{34, "kill -9 around the seal", []mode{S}, short, killAroundSeal},
		{35, "other file systems", []mode{S}, long, otherFileSystems},
		{36, "SQLite's file under the process", []mode{Q, QS}, short, sqliteFileTaken},
		{40, "stored times that cannot be", []mode{S, M, Q}, short, impossibleTimes},
		{41, "the spool's file system frozen", []mode{S}, short, frozenSpool},
		{42, "others' files in the spool", []mode{S}, long, foreignInSpool},
	}
}

var shared bench

func TestMain(m *testing.M) {
	if len(os.Args) == 7 && os.Args[1] == "racer" { // the tests' binary is the racers' program, too
		if err := runRacer(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "usagekit-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if shared.binary, err = buildExample(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	how := os.Getenv("USAGEKIT_FAULTS")
	shared.full, shared.all = how == "full", how == "full" || how == "quick"
	if shared.seed, err = seed(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return dbtest.Main(m, &shared.server)
}

// seed is USAGEKIT_FAULTS_SEED, else a random one.
func seed() (uint64, error) {
	text := os.Getenv("USAGEKIT_FAULTS_SEED")
	if text == "" {
		return rand.Uint64(), nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("USAGEKIT_FAULTS_SEED: %w", err)
	}
	return n, nil
}

// TestFaults runs the matrix: some rows for a few seconds each; with
// USAGEKIT_FAULTS=quick all rows so; with USAGEKIT_FAULTS=full all in full length.
func TestFaults(t *testing.T) {
	fmt.Printf("USAGEKIT_FAULTS_SEED=%d\n", shared.seed)
	fmt.Printf("row mode       T       A       b       e       N  verdict\n")
	for _, row := range matrix() {
		if row.when != short && !shared.all {
			continue
		}
		for _, m := range row.modes {
			t.Run(fmt.Sprintf("%02d_%s/%s", row.number, strings.ReplaceAll(row.title, " ", "_"), m), func(t *testing.T) {
				if row.when != alone {
					t.Parallel()
				}
				r := newTrial(t, shared, row.number, m)
				defer func() { fmt.Println(r.line()) }()
				if shared.server == nil && !m.sqlite() {
					r.notRun("PostgreSQL was not tried")
				}
				row.run(r)
			})
		}
	}
}

func TestMatrixIsWhole(t *testing.T) {
	var numbers []int
	for _, row := range matrix() {
		numbers = append(numbers, row.number)
	}
	var want []int
	for n := range 36 {
		want = append(want, n+1)
	}
	if want = append(want, 40, 41, 42); !slices.Equal(numbers, want) {
		t.Errorf("rows %v, want %v", numbers, want)
	}
}
