package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// errModel says that nothing names the model.
var errModel = errors.New("no model: set MODEL_NAME, or model in the file")

// deployment gives the body to send, and the deployment's name. The environment's
// variables are the seed guide's; they win over the file.
func deployment(path string, lookup func(string) string) ([]byte, string, error) {
	body := map[string]any{}
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, "", fmt.Errorf("--file: %w", err)
		}
		if err := json.Unmarshal(data, &body); err != nil {
			return nil, "", fmt.Errorf("--file: %s: %w", path, err)
		}
	}
	if model := lookup("MODEL_NAME"); model != "" {
		body["model"] = model
	}
	if text := lookup("TENSOR_PARALLEL_SIZE"); text != "" {
		size, err := strconv.Atoi(text)
		if err != nil || size < 1 {
			return nil, "", fmt.Errorf("TENSOR_PARALLEL_SIZE: want a number from 1, got %q", text)
		}
		body["tensor_parallel_size"] = size
	}
	if text := lookup("GPU_MEMORY_UTILIZATION"); text != "" {
		part, err := strconv.ParseFloat(text, 64)
		if err != nil || !(part > 0 && part <= 1) {
			return nil, "", fmt.Errorf("GPU_MEMORY_UTILIZATION: want a number in (0, 1], got %q", text)
		}
		body["gpu_memory_utilization"] = part
	}
	model, _ := body["model"].(string)
	if model == "" {
		return nil, "", errModel
	}
	name, _ := body["name"].(string)
	if name == "" {
		name = model
		body["name"] = model
	}
	data, err := json.Marshal(body)
	return data, name, err
}
