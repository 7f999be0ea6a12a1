package wire

// Orders is what a node tells one of its device processes, which runs the node's
// ranks of one replica: again and again, and when something changes.
type Orders struct {
	Version    int        `cbor:"1,keyasint"`
	Assignment Assignment `cbor:"2,keyasint"`
	Heads      int        `cbor:"3,keyasint"` // that share the driver's credit
	Draining   bool       `cbor:"4,keyasint,omitempty"`
	Members    []Member   `cbor:"5,keyasint"` // of the cluster: the process does not gossip
}

// Member says where another process of the cluster is.
type Member struct {
	Role      string `cbor:"1,keyasint"`
	ID        string `cbor:"2,keyasint"`
	Address   string `cbor:"3,keyasint"` // of its NATS server
	Processes bool   `cbor:"4,keyasint,omitempty"`
}

// Told is what a device process tells its node: again and again, and when something
// changes.
type Told struct {
	Version  int           `cbor:"1,keyasint"`
	Boot     string        `cbor:"2,keyasint"` // which of the node's processes it is
	Report   ReplicaReport `cbor:"3,keyasint"`
	Credit   *Credit       `cbor:"4,keyasint,omitempty"` // of each head
	Requests int           `cbor:"5,keyasint,omitempty"` // in progress
	Resident int64         `cbor:"6,keyasint,omitempty"` // bytes of its memory
}
