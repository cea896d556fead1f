// Package rooms holds tests of the house itself: who may import whom, and what the
// page's scripts repeat of internal/naming.
package rooms
