// Package work shows that the clients of others submit, follow and stop work at a
// real Manta: Ray's JobSubmissionClient, OpenAI's files and batches.
package work
