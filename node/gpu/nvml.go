//go:build cuda

package gpu

import (
	"context"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Reader reads NVML. Its methods may be called from several goroutines.
type Reader struct{ known []Device }

// Open loads NVML and lists the devices once.
func Open() (*Reader, error) {
	if r := nvml.Init(); r != nvml.SUCCESS {
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, nvml.ErrorString(r))
	}
	n, r := nvml.DeviceGetCount()
	if r != nvml.SUCCESS {
		nvml.Shutdown()
		return nil, fmt.Errorf("%w: count: %s", ErrUnavailable, nvml.ErrorString(r))
	}
	reader := &Reader{}
	for i := range n {
		d := Device{Index: i, Uncorrected: -1}
		handle, r := nvml.DeviceGetHandleByIndex(i)
		if r == nvml.SUCCESS {
			d.UUID, r = handle.GetUUID()
		}
		if r == nvml.SUCCESS {
			d.Name, r = handle.GetName()
		}
		if r != nvml.SUCCESS {
			d.Lost = nvml.ErrorString(r)
		} else if info, r := handle.GetPciInfo(); r == nvml.SUCCESS {
			d.Bus = bus(info)
		}
		reader.known = append(reader.known, d)
	}
	for i := range reader.known {
		reader.known[i].Links = links(reader.known, i)
	}
	return reader, nil
}

// Speeds of one NVLink of generations 2 to 4, of PCIe behind one switch or bridge, and
// across bridges: what such a link is sold with (gen 4 × 16), one way.
const (
	nvlinkSpeed = 25e9
	pcieNear    = 32e9
	pcieFar     = 16e9
)

// links gives how a GPU reaches the others: over as many NVLinks as lead there or
// into a switch, else over PCIe, if the driver lets them address each other.
func links(all []Device, at int) (list []Link) {
	here, code := nvml.DeviceGetHandleByUUID(all[at].UUID)
	if code != nvml.SUCCESS {
		return nil
	}
	switched, direct := int64(0), map[string]int64{}
	for l := range nvml.NVLINK_MAX_LINKS {
		if state, code := here.GetNvLinkState(l); code != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
			continue
		}
		if kind, code := here.GetNvLinkRemoteDeviceType(l); code == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
			switched++
		} else if far, code := here.GetNvLinkRemotePciInfo(l); code == nvml.SUCCESS {
			direct[bus(far)]++
		}
	}
	for i, other := range all {
		there, code := nvml.DeviceGetHandleByUUID(other.UUID)
		if i == at || code != nvml.SUCCESS {
			continue
		}
		if status, code := here.GetP2PStatus(there, nvml.P2P_CAPS_INDEX_READ); code != nvml.SUCCESS || status != nvml.P2P_STATUS_OK {
			continue
		}
		speed := int64(nvlinkSpeed) * direct[other.Bus]
		if status, code := here.GetP2PStatus(there, nvml.P2P_CAPS_INDEX_NVLINK); code == nvml.SUCCESS && status == nvml.P2P_STATUS_OK {
			speed = max(speed, int64(nvlinkSpeed)*switched)
		}
		if speed == 0 {
			speed = pcieFar
			if level, code := here.GetTopologyCommonAncestor(there); code == nvml.SUCCESS && level <= nvml.TOPOLOGY_HOSTBRIDGE {
				speed = pcieNear
			}
		}
		list = append(list, Link{UUID: other.UUID, Speed: speed})
	}
	return list
}

func bus(info nvml.PciInfo) string {
	return fmt.Sprintf("%08x:%02x:%02x", info.Domain, info.Bus, info.Device)
}

// Read gives every device that Open found, as it is now. What a GPU does not
// report stays zero; one that does not answer is Lost.
func (r *Reader) Read() ([]Device, error) {
	list := make([]Device, 0, len(r.known))
	for _, d := range r.known {
		if d.UUID == "" {
			list = append(list, d)
			continue
		}
		handle, code := nvml.DeviceGetHandleByUUID(d.UUID)
		var memory nvml.Memory
		if code == nvml.SUCCESS {
			memory, code = handle.GetMemoryInfo()
		}
		if code != nvml.SUCCESS {
			d.Lost = nvml.ErrorString(code)
			list = append(list, d)
			continue
		}
		d.Memory, d.Free = int64(memory.Total), int64(memory.Free)
		if u, code := handle.GetUtilizationRates(); code == nvml.SUCCESS {
			d.Utilisation = int(u.Gpu)
		}
		if t, code := handle.GetTemperature(nvml.TEMPERATURE_GPU); code == nvml.SUCCESS {
			d.Temperature = int(t)
		}
		if p, code := handle.GetPowerUsage(); code == nvml.SUCCESS {
			d.Watts = float64(p) / 1000
		}
		if e, code := handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); code == nvml.SUCCESS {
			d.Uncorrected = int64(e)
		}
		list = append(list, d)
	}
	return list, nil
}

const watchMillis = 500 // between looks at the context

// Watch reports Xid errors of all devices until the context ends.
func (r *Reader) Watch(ctx context.Context, report func(Fault)) error {
	set, code := nvml.EventSetCreate()
	if code != nvml.SUCCESS {
		return fmt.Errorf("%w: events: %s", ErrUnavailable, nvml.ErrorString(code))
	}
	defer set.Free()
	for _, d := range r.known {
		handle, code := nvml.DeviceGetHandleByUUID(d.UUID)
		if code == nvml.SUCCESS {
			code = handle.RegisterEvents(nvml.EventTypeXidCriticalError, set)
		}
		if code != nvml.SUCCESS && code != nvml.ERROR_NOT_SUPPORTED {
			report(Fault{UUID: d.UUID, Fatal: code == nvml.ERROR_GPU_IS_LOST})
		}
	}
	for ctx.Err() == nil {
		event, code := set.Wait(watchMillis)
		switch code {
		case nvml.ERROR_TIMEOUT:
		case nvml.SUCCESS:
			uuid, _ := event.Device.GetUUID()
			report(Fault{UUID: uuid, Xid: event.EventData, Fatal: Fatal(event.EventData)})
		case nvml.ERROR_GPU_IS_LOST:
			report(Fault{Xid: 79, Fatal: true}) // the driver no longer says which
			return fmt.Errorf("gpu: %s", nvml.ErrorString(code))
		default:
			return fmt.Errorf("gpu: wait for events: %s", nvml.ErrorString(code))
		}
	}
	return nil
}

// Close unloads NVML.
func (r *Reader) Close() error {
	if code := nvml.Shutdown(); code != nvml.SUCCESS {
		return fmt.Errorf("gpu: %s", nvml.ErrorString(code))
	}
	return nil
}
