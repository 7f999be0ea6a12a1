package wire

// Kinds of messages, as parallel/link names them.
const (
	KindRequest = "request" // head → node: Request
	KindCancel  = "cancel"  // head → node: Cancel
	KindAssign  = "assign"  // leader → node: Assignments
	KindResolve = "resolve" // head → node, a call: Resolve → Resolved
	KindFrames  = "frames"  // node → head: Frames
	KindCredit  = "credit"  // node → head: Credit
	KindReport  = "report"  // node → head: Report
)
