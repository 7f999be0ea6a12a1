// Package lab is a real Kubernetes on one Linux machine: a control plane and two
// nodes, each in a network, process and mount namespace of its own, with its own
// containerd, kubelet and kube-proxy. Everything is built from Go modules
// (../tools), so it needs neither a registry nor a hypervisor.
//
//	Missing → Build → Own ⟶ Enter → Up → … → Down
//
// Own runs its program a second time inside the lab's network, and at the end puts
// back what the lab and its kubelets changed on the machine: mounts, links, control
// groups, sysctls. A lab whose owner was killed is cleaned up by the next. The
// package knows nothing of Manta. NetworkPolicies are enforced when EnforcePolicies
// says so, by a small controller of its own (../tools/policy): the network plugin
// can't, and no agent that does is to be had as a Go module.
package lab
