// Package api is the head's HTTP surface: OpenAI's and vLLM's endpoints, the seed
// guide's, and the state of the cluster. It decodes, validates, turns messages
// into tokens, streams what dispatch gives, and maps errors to a status.
//
// The head's composition root owns the Server. The package keeps no state of a
// request beyond its connection, knows nothing of drivers, and never decides
// where a request runs.
package api
