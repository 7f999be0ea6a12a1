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
	KindLeave   = "leave"   // node → head, a call: nothing → nothing, once the heads have forgotten it
	KindLogs    = "logs"    // head → node or head, a call: Logs → []string
	KindJoin    = "join"    // driver's node → node, a call: Ranks → nothing, once the ranks there stand ready
	KindPing    = "ping"    // node → node, a call: nothing → nothing, from who lost a message there
	KindStep    = "step"    // driver's node → node: Ranks with a group's payload
	KindAnswer  = "answer"  // node → driver's node: Ranks with a rank's answer
	KindMesh    = "mesh"    // node → node: Ranks with a message of the ranks' mesh
	KindOrders  = "orders"  // node → its device process: Orders
	KindTold    = "told"    // device process → its node: Told
)
