package main

import (
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	managedBy = "app.kubernetes.io/managed-by"
	owner     = "ds4-peer"
	nameLabel = "ds4.dev/name"
)

// The objects that the project's operator makes too: an account, two Services, a budget, a policy, and a StatefulSet for each stage.
func objects(d *DS4Deployment) ([]client.Object, error) {
	labels := map[string]string{managedBy: owner, nameLabel: d.Name}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: d.Namespace, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, version.WithKind("DS4Deployment"))}}
	}
	mine := metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: d.Name}}
	service := func(name, address string, port int32) *corev1.Service {
		return &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta(name),
			Spec: corev1.ServiceSpec{ClusterIP: address, Selector: mine.MatchLabels, Ports: []corev1.ServicePort{{Name: "port", Port: port}}}}
	}
	one := intstr.FromInt32(1)
	protocol, port := corev1.ProtocolTCP, intstr.FromInt32(7400)
	all := []client.Object{
		&corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: meta(d.Name)},
		service(d.Name+"-stages", "None", 7400),
		service(d.Name, "", 8000),
		&policyv1.PodDisruptionBudget{TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}, ObjectMeta: meta(d.Name),
			Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &one, Selector: &mine}},
		&networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}, ObjectMeta: meta(d.Name),
			Spec: networkingv1.NetworkPolicySpec{PodSelector: mine, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
				Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &mine}},
					Ports: []networkingv1.NetworkPolicyPort{{Protocol: &protocol, Port: &port}}}}}},
	}
	for _, stage := range d.Spec.Pipeline.Stages {
		set, err := statefulSet(d, stage, meta(d.Name+"-"+stage.Name))
		if err != nil {
			return nil, err
		}
		all = append(all, set)
	}
	return all, nil
}

func statefulSet(d *DS4Deployment, stage Stage, meta metav1.ObjectMeta) (*appsv1.StatefulSet, error) {
	last := "output"
	if stage.Layers.Last != nil {
		last = fmt.Sprint(*stage.Layers.Last)
	}
	labels := map[string]string{managedBy: owner, nameLabel: d.Name, "ds4.dev/stage": stage.Name}
	no, user := false, int64(65532)
	alive := &corev1.Probe{PeriodSeconds: 10, FailureThreshold: 6, ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 7400}}}
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			ServiceAccountName: d.Name, AutomountServiceAccountToken: &no,
			SecurityContext: &corev1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &user, FSGroup: &user},
			Volumes: []corev1.Volume{{Name: "model", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "tls", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: d.Name + "-tls"}}}},
			InitContainers: []corev1.Container{{Name: "model", Image: "ds4", Args: []string{"synth", "--out", "/models/model.gguf"},
				VolumeMounts: []corev1.VolumeMount{{Name: "model", MountPath: "/models"}}}},
			Containers: []corev1.Container{{Name: "ds4", Image: "ds4",
				Args:          []string{"stage", "--model", "/models/model.gguf", "--layers", fmt.Sprintf("%d:%s", stage.Layers.First, last)},
				Ports:         []corev1.ContainerPort{{Name: "grpc", ContainerPort: 7400}},
				LivenessProbe: alive, ReadinessProbe: alive, StartupProbe: alive,
				VolumeMounts: []corev1.VolumeMount{{Name: "model", MountPath: "/models"}, {Name: "tls", MountPath: "/tls", ReadOnly: true}}}},
		},
	}
	if len(stage.PodTemplate) > 0 {
		base, err := json.Marshal(template)
		if err != nil {
			return nil, err
		}
		merged, err := strategicpatch.StrategicMergePatch(base, stage.PodTemplate, template)
		if err != nil {
			return nil, err
		}
		template = corev1.PodTemplateSpec{}
		if err := json.Unmarshal(merged, &template); err != nil {
			return nil, err
		}
	}
	meta.Labels = labels
	return &appsv1.StatefulSet{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"}, ObjectMeta: meta,
		Spec: appsv1.StatefulSetSpec{Replicas: d.Spec.Replicas, ServiceName: d.Name + "-stages", PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: d.Name, "ds4.dev/stage": stage.Name}}, Template: template}}, nil
}
