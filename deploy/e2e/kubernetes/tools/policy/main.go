// Policy enforces NetworkPolicies, which the lab's network plugin does not. It
// follows the cluster's pods and policies, and gives each Kubernetes node's network
// namespace the rules for the pods that it has:
//
//	policy -kubeconfig FILE NODE=NAMESPACE…
//
// It knows what networking.k8s.io/v1 has for IPv4, but port ranges. When it ends its
// rules go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// first is the chain that FORWARD jumps to.
const first = "LAB-POLICY"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	kubeconfig := flag.String("kubeconfig", "", "")
	flag.Parse()
	if err := run(ctx, *kubeconfig, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig string, nodes []string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	changed := make(chan struct{}, 1)
	wake := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	on := cache.ResourceEventHandlerFuncs{AddFunc: wake, UpdateFunc: func(_, now any) { wake(now) }, DeleteFunc: wake}
	pods, policies, namespaces := factory.Core().V1().Pods(), factory.Networking().V1().NetworkPolicies(), factory.Core().V1().Namespaces()
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), policies.Informer(), namespaces.Informer()} {
		if _, err := informer.AddEventHandler(on); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	defer factory.Shutdown()
	for _, node := range nodes {
		_, space, _ := strings.Cut(node, "=")
		if err := inside(space, "", "iptables", "-N", first); err != nil {
			return err
		}
		if err := inside(space, "", "iptables", "-I", "FORWARD", "1", "-j", first); err != nil {
			return err
		}
		defer func() {
			_ = inside(space, "", "iptables", "-D", "FORWARD", "-j", first)
			_ = inside(space, "*filter\n:"+first+" - [0:0]\nCOMMIT\n", "iptables-restore", "--noflush") // others stay, without a way to them
		}()
	}
	applied := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		state := cluster{}
		if state.pods, err = pods.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if state.policies, err = policies.Lister().List(labels.Everything()); err != nil {
			return err
		}
		spaces, err := namespaces.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		slices.SortFunc(state.pods, func(a, b *core.Pod) int { return strings.Compare(string(a.UID), string(b.UID)) })
		slices.SortFunc(state.policies, func(a, b *networking.NetworkPolicy) int { return strings.Compare(string(a.UID), string(b.UID)) })
		state.namespaces = map[string]labels.Set{}
		for _, n := range spaces {
			state.namespaces[n.Name] = n.Labels
		}
		for _, node := range nodes {
			name, space, _ := strings.Cut(node, "=")
			rules, err := state.rules(name)
			if err != nil {
				return err
			}
			if rules == applied[node] {
				continue
			}
			if err := inside(space, rules, "iptables-restore", "--noflush"); err != nil {
				return err
			}
			if applied[node] == "" {
				log.Printf("%s: enforced", name)
			}
			applied[node] = rules
		}
		select { // many changes come together
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// inside runs a command in a network namespace.
func inside(space, input string, command ...string) error {
	c := exec.Command("nsenter", append([]string{"--net=" + space, "--"}, command...)...)
	c.Stdin = strings.NewReader(input)
	c.Env = os.Environ()
	if said, err := c.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, said), fmt.Errorf("rules:\n%s", input))
	}
	return nil
}

type cluster struct {
	pods       []*core.Pod
	policies   []*networking.NetworkPolicy
	namespaces map[string]labels.Set
}

// rules gives a node's, as iptables-restore takes them. A packet must pass those of
// its sender and those of its receiver; each is asked where it runs.
func (c *cluster) rules(node string) (string, error) {
	chains := map[string][]string{first: {"-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"}}
	local := slices.DeleteFunc(slices.Clone(c.pods), func(p *core.Pod) bool { return p.Spec.NodeName != node || !addressed(p) })
	for _, pod := range local {
		for _, way := range []struct {
			kind networking.PolicyType
			flag string
		}{{networking.PolicyTypeIngress, "-d"}, {networking.PolicyTypeEgress, "-s"}} {
			allowed, isolated, err := c.allowed(pod, way.kind)
			if err != nil {
				return "", err
			}
			if !isolated {
				continue
			}
			chain := fmt.Sprintf("LAB-%s-%.16s", strings.ToUpper(string(way.kind[:2])), strings.ReplaceAll(string(pod.UID), "-", ""))
			chains[first] = append(chains[first], fmt.Sprintf("%s %s -j %s", way.flag, pod.Status.PodIP, chain))
			for _, match := range allowed {
				chains[chain] = append(chains[chain], match+" -j RETURN")
			}
			chains[chain] = append(chains[chain], "-j DROP")
		}
	}
	var b strings.Builder
	b.WriteString("*filter\n")
	names := slices.Sorted(maps.Keys(chains))
	for _, name := range names {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name) // empties it
	}
	for _, name := range names {
		for _, rule := range chains[name] {
			fmt.Fprintf(&b, "-A %s %s\n", name, rule)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String(), nil
}

// allowed gives the matches of what a pod may get or send, if a policy selects it.
func (c *cluster) allowed(pod *core.Pod, kind networking.PolicyType) (matches []string, isolated bool, err error) {
	for _, policy := range c.policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, kind) {
			continue
		}
		if ok, err := selects(&policy.Spec.PodSelector, pod.Labels); !ok || err != nil {
			if err != nil {
				return nil, false, err
			}
			continue
		}
		isolated = true
		if kind == networking.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				more, err := c.matches(policy.Namespace, "-s", rule.From, rule.Ports, pod)
				if err != nil {
					return nil, false, err
				}
				matches = append(matches, more...)
			}
			continue
		}
		for _, rule := range policy.Spec.Egress {
			more, err := c.matches(policy.Namespace, "-d", rule.To, rule.Ports, nil)
			if err != nil {
				return nil, false, err
			}
			matches = append(matches, more...)
		}
	}
	return matches, isolated, nil
}

// matches gives a rule's: each peer with each port. Receiver is whose names ports
// have; nil: the peers'.
func (c *cluster) matches(namespace, flag string, peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort, receiver *core.Pod) ([]string, error) {
	var found []string
	add := func(address string, named *core.Pod) {
		if len(ports) == 0 {
			found = append(found, strings.TrimSpace(address))
		}
		for _, port := range ports {
			protocol, number := core.ProtocolTCP, ""
			if port.Protocol != nil {
				protocol = *port.Protocol
			}
			if port.Port != nil {
				if number = numberOf(port.Port.String(), named, protocol); number == "" {
					continue
				}
				number = " --dport " + number
			}
			found = append(found, strings.TrimSpace(fmt.Sprintf("%s -p %s%s", address, strings.ToLower(string(protocol)), number)))
		}
	}
	if len(peers) == 0 {
		add("", receiver)
	}
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if len(peer.IPBlock.Except) > 0 {
				return nil, fmt.Errorf("ipBlock.except is not known here")
			}
			add(flag+" "+peer.IPBlock.CIDR, receiver)
			continue
		}
		for _, pod := range c.pods {
			ok, err := c.isPeer(pod, namespace, peer)
			if err != nil {
				return nil, err
			}
			if !ok || !addressed(pod) {
				continue
			}
			named := receiver
			if named == nil {
				named = pod
			}
			add(flag+" "+pod.Status.PodIP, named)
		}
	}
	return found, nil
}

func (c *cluster) isPeer(pod *core.Pod, namespace string, peer networking.NetworkPolicyPeer) (bool, error) {
	if peer.NamespaceSelector == nil && pod.Namespace != namespace {
		return false, nil
	}
	if peer.NamespaceSelector != nil {
		if ok, err := selects(peer.NamespaceSelector, c.namespaces[pod.Namespace]); !ok || err != nil {
			return false, err
		}
	}
	if peer.PodSelector == nil {
		return true, nil
	}
	return selects(peer.PodSelector, pod.Labels)
}

func selects(selector *meta.LabelSelector, set labels.Set) (bool, error) {
	compiled, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		return false, err
	}
	return compiled.Matches(set), nil
}

// numberOf resolves a port's name by its pod; a name that the pod lacks is no port.
func numberOf(port string, pod *core.Pod, protocol core.Protocol) string {
	if port[0] >= '0' && port[0] <= '9' {
		return port
	}
	if pod != nil {
		for _, container := range pod.Spec.Containers {
			for _, p := range container.Ports {
				if p.Name == port && (p.Protocol == protocol || p.Protocol == "" && protocol == core.ProtocolTCP) {
					return fmt.Sprint(p.ContainerPort)
				}
			}
		}
	}
	return ""
}

// addressed reports whether packets of a pod have its own address.
func addressed(pod *core.Pod) bool {
	return pod.Status.PodIP != "" && !pod.Spec.HostNetwork && pod.Status.Phase != core.PodSucceeded && pod.Status.Phase != core.PodFailed
}
