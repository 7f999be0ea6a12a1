package telemetry

import (
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// GPUs have the names that NVIDIA's exporter gives them, a lost one keeps its
// faults alone, and a node that falls silent has no series.
func TestNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New()
		scrape := func() string {
			recorder := httptest.NewRecorder()
			m.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
			return recorder.Body.String()
		}
		m.SetNode("n", []GPU{
			{UUID: "GPU-a", Name: "H200", Memory: 3 << 30, Free: 1 << 30, Utilisation: 40, Temperature: 50, Watts: 300.5, Uncorrected: -1},
			{Index: 1, UUID: "GPU-b", Name: "H200", Xid: 79, Uncorrected: 2, Lost: true},
		}, []Process{{Replica: "m/0", Starts: 2, Resident: 1 << 20}})
		text := scrape()
		for _, line := range []string{
			`DCGM_FI_DEV_FB_USED{UUID="GPU-a",gpu="0",modelName="H200",node="n"} 2048`,
			`DCGM_FI_DEV_FB_FREE{UUID="GPU-a",gpu="0",modelName="H200",node="n"} 1024`,
			`DCGM_FI_DEV_GPU_UTIL{UUID="GPU-a",gpu="0",modelName="H200",node="n"} 40`,
			`DCGM_FI_DEV_POWER_USAGE{UUID="GPU-a",gpu="0",modelName="H200",node="n"} 300.5`,
			`DCGM_FI_DEV_XID_ERRORS{UUID="GPU-b",gpu="1",modelName="H200",node="n"} 79`,
			`DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{UUID="GPU-b",gpu="1",modelName="H200",node="n"} 2`,
			`manta_gpu_lost{UUID="GPU-b",gpu="1",modelName="H200",node="n"} 1`,
			`manta_device_process_starts_total{node="n",replica="m/0"} 2`,
			`manta_device_process_resident_memory_bytes{node="n",replica="m/0"} 1.048576e+06`,
		} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no %s", line)
			}
		}
		for _, line := range []string{`DCGM_FI_DEV_GPU_UTIL{UUID="GPU-b"`, `DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{UUID="GPU-a"`} {
			if strings.Contains(text, line) {
				t.Errorf("%s is there", line)
			}
		}
		<-time.After(silent + time.Second)
		if text := scrape(); strings.Contains(text, "GPU-a") {
			t.Error("a silent node has series")
		}
	})
}
