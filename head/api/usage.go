package api

// usage counts tokens, in OpenAI's words.
type usage struct {
	PromptTokens     int            `json:"prompt_tokens"`
	TotalTokens      int            `json:"total_tokens"`
	CompletionTokens int            `json:"completion_tokens"`
	Details          *promptDetails `json:"prompt_tokens_details,omitempty"`
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

func newUsage(prompt, completion, cached int) *usage {
	return &usage{
		PromptTokens: prompt, CompletionTokens: completion, TotalTokens: prompt + completion,
		Details: &promptDetails{CachedTokens: cached},
	}
}

// countUsage sums the usage of a whole job.
func countUsage(j *job, all []gathered) *usage {
	prompt, completion, cached := 0, 0, 0
	for i := range all {
		prompt += len(j.prompts[i].tokens)
		cached += all[i].cached
		for _, a := range all[i].choices {
			completion += len(a.tokens)
		}
	}
	return newUsage(prompt, completion, cached)
}
