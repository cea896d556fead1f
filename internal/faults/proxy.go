package faults

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// proxy stands between a program and PostgreSQL. It reads the protocol
// (https://www.postgresql.org/docs/current/protocol.html) as far as it takes to
// see each statement before it is forwarded, and the end of its answer.
type proxy struct {
	listener net.Listener
	server   string // address

	delay atomic.Int64 // nanoseconds that each direction takes longer
	rate  atomic.Int64 // bytes per second and direction; 0: no limit

	mu     sync.Mutex
	script func(statement) verdict // nil: all pass
	edit   *strings.Replacer       // of statements; nil: none
	links  map[*link]bool
	did    map[string]int // how often what was done
	closed bool
	wg     sync.WaitGroup
}

// statement is one that is about to be forwarded.
type statement struct {
	text    string
	before  string // the statements of its transaction before it, a line each
	backend int    // the process of the server that would run it
}

// isCommit tells whether it ends a transaction.
func (s statement) isCommit() bool { return strings.EqualFold(strings.Trim(s.text, " ;"), "COMMIT") }

// sends tells whether it commits a flush, and folds whether it commits a fold.
func (s statement) sends() bool {
	return s.isCommit() && strings.Contains(s.before, "INSERT INTO usage_inbox")
}
func (s statement) folds() bool {
	return s.isCommit() && strings.Contains(s.before, "INSERT INTO usage_metrics")
}

// cut is whether and when a connection ends on account of a statement.
type cut int

const (
	pass   cut = iota
	before     // the server never sees the statement
	after      // the server has run it; its answer is swallowed
	refuse     // the client gets an ErrorResponse in place of it
	fail       // so it does, and the connection goes on; not for COMMIT
)

// ending is how a connection ends.
type ending int

const (
	byFIN ending = iota
	byRST
	byBlackHole // it stays open, and nothing is answered, until it is closed
)

func (e ending) String() string { return [...]string{"FIN", "RST", "black hole"}[e] }

// verdict is what becomes of a statement, and of its connection with it. The zero
// verdict lets it pass.
type verdict struct {
	cut  cut
	by   ending
	hold time.Duration // how long a black hole lasts
	code string        // SQLSTATE of refuse and fail; "": 57P01, a server that shuts down
	then func()        // called just before the connection ends
}

func (v verdict) String() string {
	switch v.cut {
	case before:
		return "before, " + v.by.String()
	case after:
		return "after, " + v.by.String()
	case refuse:
		return "refused"
	case fail:
		return "failed"
	}
	return "pass"
}

// newProxy starts a proxy on a free port of the loopback interface.
func newProxy(databaseURL string) (*proxy, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, server: u.Host, links: map[*link]bool{}, did: map[string]int{}}
	p.wg.Go(p.accept)
	return p, nil
}

// url is databaseURL, through the proxy.
func (p *proxy) url(databaseURL string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return "", err
	}
	u.Host = p.listener.Addr().String()
	return u.String(), nil
}

// set asks script about every statement from now on; nil lets all pass. It may be
// asked by several connections at once, and may block.
func (p *proxy) set(script func(statement) verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script = script
}

// rewrite replaces texts in every statement from now on, each by the one after it:
// how a test removes a guard from the SQL of a program that it cannot change.
func (p *proxy) rewrite(oldnew ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.edit = strings.NewReplacer(oldnew...)
}

// slow makes every direction take delay longer, and pass at most rate bytes per
// second; 0 is no limit.
func (p *proxy) slow(delay time.Duration, rate int64) {
	p.delay.Store(int64(delay))
	p.rate.Store(rate)
}

// done returns how often each kind of verdict was carried out.
func (p *proxy) done() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	did := map[string]int{}
	for what, n := range p.did {
		did[what] = n
	}
	return did
}

// close ends the proxy and its connections.
func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", p.server, 5*time.Second)
	if err != nil {
		return // the client sees that nobody answers
	}
	defer server.Close()
	l := &link{proxy: p, client: client, server: server}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.links[l] = true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { _ = l.up(); l.half(server) })
	both.Go(func() { _ = l.down(); l.half(client) })
	both.Wait()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// link is one connection through the proxy.
type link struct {
	proxy          *proxy
	client, server net.Conn
	backend        atomic.Int64
	swallow        atomic.Pointer[verdict] // the answer that comes next is not forwarded
	ended          atomic.Bool             // by a verdict, which closes the client's side
}

func (l *link) close() {
	_ = l.client.Close()
	_ = l.server.Close()
}

// half ends what is written to c, as the other side has ended.
func (l *link) half(c net.Conn) {
	if !l.ended.Load() {
		l.close()
	} else if c == l.server {
		_ = c.Close()
	}
}

var errEnded = errors.New("the connection was ended")

// up forwards what the client sends.
func (l *link) up() error {
	from, to := bufio.NewReader(l.client), bufio.NewWriter(l.server)
	if err := l.startup(from, to); err != nil {
		return err
	}
	var tx strings.Builder
	for {
		kind, message, err := readMessage(from)
		if err != nil {
			return err
		}
		if text, ok := statementOf(kind, message); ok {
			if strings.HasPrefix(text, "BEGIN") {
				tx.Reset()
			}
			v := l.proxy.ask(statement{text: text, before: tx.String(), backend: int(l.backend.Load())})
			tx.WriteString(text + "\n")
			message = l.proxy.edited(message)
			switch v.cut {
			case before, refuse:
				l.end(v)
				return errEnded
			case fail:
				if err := l.fail(v, kind, from); err != nil {
					return err
				}
				continue
			case after:
				l.swallow.Store(&v)
			}
		}
		if err := l.forward(to, message, from.Buffered() == 0); err != nil {
			return err
		}
	}
}

// fail answers a statement with an error, as a server does that goes on.
func (l *link) fail(v verdict, kind byte, from *bufio.Reader) error {
	l.proxy.count(v)
	for kind != 'Q' && kind != 'S' { // what belongs to a Parse, until Sync
		var err error
		if kind, _, err = readMessage(from); err != nil {
			return err
		}
	}
	failed := []byte{'Z', 0, 0, 0, 5, 'E'} // ReadyForQuery, in a failed transaction
	_, err := l.client.Write(append(errorResponse(cmp.Or(v.code, shutdown)), failed...))
	return err
}

// shutdown is the SQLSTATE admin_shutdown.
const shutdown = "57P01"

// The codes with which a connection may begin.
const (
	cancelRequest = 80877102
	sslRequest    = 80877103
	gssRequest    = 80877104
)

// startup forwards how the connection begins.
func (l *link) startup(from *bufio.Reader, to *bufio.Writer) error {
	for {
		head, err := from.Peek(8)
		if err != nil {
			return err
		}
		size := int(binary.BigEndian.Uint32(head))
		if size < 8 || size > 10_000 {
			return fmt.Errorf("a startup packet of %d bytes", size)
		}
		code := binary.BigEndian.Uint32(head[4:])
		message := make([]byte, size)
		if _, err := io.ReadFull(from, message); err != nil {
			return err
		}
		if code == sslRequest || code == gssRequest {
			if _, err := l.client.Write([]byte{'N'}); err != nil { // in the clear, please
				return err
			}
			continue
		}
		if err := l.forward(to, message, true); err != nil {
			return err
		}
		if code == cancelRequest {
			_, err := from.ReadByte() // nothing follows but the end
			return err
		}
		return nil
	}
}

// down forwards what the server answers.
func (l *link) down() error {
	from, to := bufio.NewReader(l.server), bufio.NewWriter(l.client)
	for {
		kind, message, err := readMessage(from)
		if err != nil {
			return err
		}
		if kind == 'K' && len(message) >= 9 { // BackendKeyData
			l.backend.Store(int64(binary.BigEndian.Uint32(message[5:])))
		}
		if v := l.swallow.Load(); v != nil {
			if kind == 'Z' { // ReadyForQuery: it took effect
				l.end(*v)
				return errEnded
			}
			continue
		}
		if err := l.forward(to, message, from.Buffered() == 0); err != nil {
			return err
		}
	}
}

// forward writes a message, after as long as it takes on a slow line.
func (l *link) forward(to *bufio.Writer, message []byte, last bool) error {
	if rate := l.proxy.rate.Load(); rate > 0 {
		time.Sleep(time.Duration(len(message)) * time.Second / time.Duration(rate))
	}
	if _, err := to.Write(message); err != nil {
		return err
	}
	if !last {
		return nil
	}
	if d := l.proxy.delay.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	return to.Flush()
}

// end carries out a verdict.
func (l *link) end(v verdict) {
	if !l.ended.CompareAndSwap(false, true) {
		return
	}
	l.proxy.count(v)
	if v.then != nil {
		v.then()
	}
	if v.cut == refuse {
		_, _ = l.client.Write(errorResponse(cmp.Or(v.code, shutdown)))
	}
	_ = l.server.Close()
	switch v.by {
	case byRST:
		if tcp, ok := l.client.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	case byBlackHole:
		_ = l.client.SetReadDeadline(time.Now().Add(v.hold))
		_, _ = io.Copy(io.Discard, l.client)
	}
	_ = l.client.Close()
}

func errorResponse(sqlState string) []byte {
	fields := "SERROR\x00VERROR\x00C" + sqlState + "\x00Mrefused by a test\x00\x00"
	return append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(fields))), fields...)
}

func (p *proxy) ask(s statement) verdict {
	p.mu.Lock()
	script := p.script
	p.did["statements"]++
	if s.isCommit() {
		p.did["commits"]++
	}
	p.mu.Unlock()
	if script == nil {
		return verdict{}
	}
	return script(s)
}

// edited returns the message of a statement as it is to be forwarded.
func (p *proxy) edited(message []byte) []byte {
	p.mu.Lock()
	edit := p.edit
	p.mu.Unlock()
	if edit == nil {
		return message
	}
	body := edit.Replace(string(message[5:]))
	return append(binary.BigEndian.AppendUint32(message[:1:1], uint32(4+len(body))), body...)
}

func (p *proxy) count(v verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.did[v.String()]++
}

// readMessage reads a message with its type and length.
func readMessage(from *bufio.Reader) (kind byte, message []byte, err error) {
	head, err := from.Peek(5)
	if err != nil {
		return 0, nil, err
	}
	size := int(binary.BigEndian.Uint32(head[1:]))
	if size < 4 || size > 1<<30 {
		return 0, nil, fmt.Errorf("a message %q of %d bytes", head[0], size)
	}
	kind, message = head[0], make([]byte, 1+size)
	_, err = io.ReadFull(from, message)
	return kind, message, err
}

// statementOf returns the text of a Query or Parse message, without the schema that a
// store found its tables in.
func statementOf(kind byte, message []byte) (text string, ok bool) {
	body := message[5:]
	switch kind {
	case 'Q':
	case 'P': // the name of the prepared statement comes first
		_, body, ok = bytes.Cut(body, []byte{0})
		if !ok {
			return "", false
		}
	default:
		return "", false
	}
	first, _, _ := bytes.Cut(body, []byte{0})
	return strings.ReplaceAll(string(first), `"public".`, ""), true
}
