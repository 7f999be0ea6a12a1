package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"
)

// Role is the part that a process plays in the cluster.
type Role string

const (
	Head Role = "head"
	Node Role = "node"
	// Device is a process that runs a replica's ranks for its node.
	Device Role = "device"
)

const (
	maxIDBytes = 63
	// deviceDigits follow the node's id and '-' in the id of a device process.
	deviceDigits = 8
	// A leaf is made anew after renewAfter; those that live connections showed
	// stay valid far longer. Clocks may differ by clockSkew.
	leafLifetime = 365 * 24 * time.Hour
	renewAfter   = 30 * 24 * time.Hour
	clockSkew    = 24 * time.Hour
)

var (
	// ErrIdentity says that a peer is not who it was expected to be.
	ErrIdentity = errors.New("peer identity")
	// ErrUnknownSecret says that a peer's certificate comes from no secret of ours.
	ErrUnknownSecret = errors.New("peer holds no secret of this cluster")
)

// An Identity names one process of the cluster.
type Identity struct {
	Role Role
	ID   string
}

func (i Identity) String() string { return "manta-" + string(i.Role) + "/" + i.ID }

// DeviceOf is the identity of the process that runs a node's ranks of a replica.
func DeviceOf(node, replica string) Identity {
	digest := sha256.Sum256([]byte(replica))
	return Identity{Device, node + "-" + hex.EncodeToString(digest[:deviceDigits/2])}
}

// Home is whose server a process subscribes at: its own, or for a device process
// its node's.
func (i Identity) Home() Identity {
	if i.Role != Device || len(i.ID) <= deviceDigits+1 {
		return i
	}
	return Identity{Node, i.ID[:len(i.ID)-deviceDigits-1]}
}

// Check reports an identity that cannot stand in a certificate or a subject:
// ids are 1 to 63 of a-z, 0-9 and '-'; a device process has its node's and a suffix.
func (i Identity) Check() error {
	if i.Role == Device {
		home := i.Home()
		if home == i || i.ID[len(home.ID)] != '-' {
			return fmt.Errorf("%w: id %q has no node", ErrIdentity, i.ID)
		}
		if err := home.Check(); err != nil {
			return err
		}
	} else if i.Role != Head && i.Role != Node {
		return fmt.Errorf("%w: role %q is none of head, node and device", ErrIdentity, i.Role)
	} else if len(i.ID) == 0 || len(i.ID) > maxIDBytes {
		return fmt.Errorf("%w: id %q must have 1 to %d characters", ErrIdentity, i.ID, maxIDBytes)
	}
	for _, r := range i.ID {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("%w: id %q may hold a-z, 0-9 and '-' only", ErrIdentity, i.ID)
		}
	}
	return nil
}

// ParseIdentity reads what String wrote.
func ParseIdentity(s string) (Identity, error) {
	rest, ok := strings.CutPrefix(s, "manta-")
	role, id, found := strings.Cut(rest, "/")
	identity := Identity{Role: Role(role), ID: id}
	if !ok || !found {
		return identity, fmt.Errorf("%w: %q is not of the form manta-<role>/<id>", ErrIdentity, s)
	}
	return identity, identity.Check()
}

// An Authority proves one identity and verifies others. It is safe for
// concurrent use.
type Authority struct {
	self    Identity
	signer  ed25519.PrivateKey
	parent  *x509.Certificate
	trusted *x509.CertPool

	mu   sync.Mutex       // guards leaf and made
	leaf *tls.Certificate // shown to peers
	made time.Time
}

// NewAuthority makes the authority of one process.
func NewAuthority(secrets Secrets, self Identity) (*Authority, error) {
	if err := self.Check(); err != nil {
		return nil, err
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%w: none given", ErrSecret)
	}
	a := &Authority{self: self, trusted: x509.NewCertPool()}
	for i := range secrets {
		seed, err := secrets.derive(i, "authority")
		if err != nil {
			return nil, err
		}
		key := ed25519.NewKeyFromSeed(seed)
		root, err := rootCertificate(key)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSecret, err)
		}
		a.trusted.AddCert(root)
		if i == 0 {
			a.signer, a.parent = key, root
		}
	}
	if _, err := a.certificate(); err != nil {
		return nil, err
	}
	return a, nil
}

// Self is the identity that this authority proves.
func (a *Authority) Self() Identity { return a.self }

// rootCertificate makes the certificate authority of a secret. It is the same,
// byte for byte, in every process: Ed25519 signatures are deterministic.
func rootCertificate(key ed25519.PrivateKey) (*x509.Certificate, error) {
	public := key.Public().(ed25519.PublicKey)
	name := sha256.Sum256(public)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("manta cluster %x", name[:8])},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (a *Authority) certificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.leaf != nil && now.Sub(a.made) < renewAfter {
		return a.leaf, nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("trust: certificate of %s: %w", a.self, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("trust: certificate of %s: %w", a.self, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: a.self.String()},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(leafLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.parent, public, a.signer)
	if err != nil {
		return nil, fmt.Errorf("trust: certificate of %s: %w", a.self, err)
	}
	a.leaf, a.made = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, now
	return a.leaf, nil
}

// Server gives the configuration of a listener. A peer must hold a secret of
// this cluster; the caller asks Peer who it is.
func (a *Authority) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert,
		// Full records from the first byte: the links are not browsers.
		DynamicRecordSizingDisabled: true,
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.certificate() },
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := a.Peer(state)
			return err
		},
	}
}

// Client gives the configuration of a connection to peer, and to nobody else.
func (a *Authority) Client(peer Identity) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		DynamicRecordSizingDisabled: true,
		// The chain and the identity are verified below, in place of a host name.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return a.certificate()
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			got, err := a.Peer(state)
			if err == nil && got != peer {
				err = fmt.Errorf("%w: expected %s, found %s", ErrIdentity, peer, got)
			}
			return err
		},
	}
}

// Peer verifies the other side of a connection and says who it is.
func (a *Authority) Peer(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: it showed no certificate", ErrIdentity)
	}
	leaf := state.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:     a.trusted,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return Identity{}, fmt.Errorf("%w: %s", ErrUnknownSecret, leaf.Subject.CommonName)
	case err != nil:
		return Identity{}, fmt.Errorf("%w: %s: %w", ErrIdentity, leaf.Subject.CommonName, err)
	}
	return ParseIdentity(leaf.Subject.CommonName)
}
