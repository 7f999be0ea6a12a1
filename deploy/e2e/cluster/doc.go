// Package cluster runs three heads and four nodes as real processes and breaks them
// one after the other while streams run: every stream must end with the tokens of
// the undisturbed run. Each fault first proves that it has happened, and the
// longest pause of each is printed. Links are cut too: as root the members live
// in network namespaces, for others on Linux (and with -relays) relays stand between
// them, at the addresses that they advertise; elsewhere no link is cut.
//
// Tests carry the build tag e2e. make e2e makes each fault once; make e2e-full and
// make soak have the full counts, make e2e-upgrade an earlier program.
package cluster
