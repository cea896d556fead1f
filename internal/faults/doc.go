// Package faults shows that nothing is lost and nothing counted twice, whatever
// breaks: with real processes. The example program runs against a PostgreSQL of
// the tests' own, or a SQLite file, while clients ask it and something is killed,
// stopped, cut or slowed down. Afterwards what the clients know (attempted,
// answered), what the program wrote in its ledger (begun, responded) and what the
// database holds have to agree, name by name.
//
//	program.go      the example: started, killed, stopped
//	proxy.go        between it and PostgreSQL: cuts, refuses, delays, rewrites, counts
//	load.go         clients, and what they sent and got
//	oracle.go       what must hold between attempted, answered, begun, responded and counted
//	trial.go        one row of the matrix in one mode: sets all this up, drains, judges, prints its line
//	rows_test.go    the matrix; rows_*_test.go has what each row does
//	oracle_test.go  wrong numbers, and an unguarded upsert, do not pass
//
// A row is a function and an entry in the matrix: its number, what it is called,
// in which modes it runs, whether `make test` runs it, the function. The function
// gets a trial, and most look like this:
//
//	func restarted(r *trial) {
//		r.start(setup{ownServer: true})     // database, programs, load
//		r.fault(func() { … })               // do it, while the load goes on
//		r.judge(exactly)                    // stop the load, drain, compare
//	}
//
// Durations come from trial.lasts(long, short): the long form is `make faults`,
// the short one, of a few seconds, `make test`. What cannot be tried on this
// machine calls trial.notRun with the reason. One row, for a few seconds:
//
//	USAGEKIT_PG=require USAGEKIT_FAULTS=quick go test -v ./internal/faults -run TestFaults/11
//
// USAGEKIT_FAULTS_SEED, which each run prints, repeats the choices of another run;
// not its timing.
//
// Signals go only to processes that the tests started, connections only to the
// loopback interface, files only into temporary directories.
package faults
