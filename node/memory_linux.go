package node

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machineMemory gives the bytes that this process could use now: what the kernel
// calls available, or what a container's limit leaves of it.
func machineMemory() int64 {
	available := meminfo("MemAvailable:")
	if available == 0 {
		var info unix.Sysinfo_t
		if unix.Sysinfo(&info) == nil {
			available = int64(info.Freeram) * int64(info.Unit)
		}
	}
	limit, ok := number("/sys/fs/cgroup/memory.max")
	used, _ := number("/sys/fs/cgroup/memory.current")
	if !ok {
		limit, ok = number("/sys/fs/cgroup/memory/memory.limit_in_bytes")
		used, _ = number("/sys/fs/cgroup/memory/memory.usage_in_bytes")
	}
	if ok && limit-used < available {
		// Pages of files count as used and are given back under pressure.
		return max(0, min(available, limit-used+fileCache()))
	}
	return available
}

func meminfo(key string) int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		field := strings.Fields(line)
		if len(field) >= 2 && field[0] == key {
			kib, err := strconv.ParseInt(field[1], 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

func fileCache() int64 {
	data, err := os.ReadFile("/sys/fs/cgroup/memory.stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "file "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

func number(path string) (int64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	return n, err == nil
}

func processorName() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
