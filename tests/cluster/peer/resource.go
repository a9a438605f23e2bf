package main

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var version = schema.GroupVersion{Group: "ds4.dev", Version: "v1alpha1"}

// What the peer reads and writes of a DS4Deployment.
type DS4Deployment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              Spec   `json:"spec"`
	Status            Status `json:"status,omitempty"`
}

type Spec struct {
	Replicas *int32 `json:"replicas,omitempty"`
	Model    struct {
		Name   string          `json:"name"`
		Source json.RawMessage `json:"source"`
	} `json:"model"`
	Pipeline struct {
		Stages []Stage `json:"stages"`
	} `json:"pipeline"`
}

type Stage struct {
	Name   string `json:"name"`
	Layers struct {
		First int  `json:"first"`
		Last  *int `json:"last,omitempty"`
	} `json:"layers"`
	PodTemplate json.RawMessage `json:"podTemplate,omitempty"`
}

type Status struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	ReadyReplicas      int32              `json:"readyReplicas,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

type DS4DeploymentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DS4Deployment `json:"items"`
}

func (d *DS4Deployment) DeepCopy() *DS4Deployment {
	out := *d
	out.ObjectMeta = *d.ObjectMeta.DeepCopy()
	out.Spec.Pipeline.Stages = append([]Stage(nil), d.Spec.Pipeline.Stages...)
	out.Status.Conditions = append([]metav1.Condition(nil), d.Status.Conditions...)
	return &out
}

func (d *DS4Deployment) DeepCopyObject() runtime.Object { return d.DeepCopy() }

func (l *DS4DeploymentList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]DS4Deployment, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopy()
	}
	return &out
}

func register(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(version, &DS4Deployment{}, &DS4DeploymentList{})
	metav1.AddToGroupVersion(scheme, version)
	return nil
}
