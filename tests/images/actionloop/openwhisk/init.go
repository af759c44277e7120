// Package openwhisk holds the body of /init. Package and type names are part of the error texts that
// encoding/json gives for a member of the wrong type, so they are those of the stock proxy.
package openwhisk

import "encoding/json"

type initBodyRequest struct {
	Code   string                 `json:"code,omitempty"`
	Binary bool                   `json:"binary,omitempty"`
	Main   string                 `json:"main,omitempty"`
	Env    map[string]interface{} `json:"env,omitempty"`
}

type initRequest struct {
	Value initBodyRequest `json:"value,omitempty"`
}

// ParseInit reads the body of /init.
func ParseInit(body []byte) (initBodyRequest, error) {
	var request initRequest
	err := json.Unmarshal(body, &request)
	return request.Value, err
}
