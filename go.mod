module github.com/usagekit/usagekit

go 1.26.0

// The oldest versions that the tests pass with, and no bug of theirs is known to lose
// or spoil data: programs choose newer ones, and internal/pools tries the newest.
require (
	github.com/DATA-DOG/go-sqlmock v1.5.0
	github.com/dunglas/httpsfv v1.1.2
	github.com/jmoiron/sqlx v1.3.1
	github.com/lib/pq v1.11.2
	golang.org/x/sys v0.42.0
	modernc.org/sqlite v1.48.2 // SQLite 3.51.3: before it, two connections could spoil a WAL (https://sqlite.org/wal.html#walresetbug); before 1.48.2, a failed open kept its files open
)

require (
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	github.com/ncruces/go-strftime v1.0.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	modernc.org/libc v1.70.0 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.11.0 // indirect
)
