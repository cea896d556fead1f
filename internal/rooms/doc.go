// Package rooms holds tests of the house itself: who may import whom, what the public
// packages export, and what the page's scripts repeat of internal/naming.
package rooms
