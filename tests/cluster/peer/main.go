// An operator of the usual make, for comparison: controller-runtime, the same resource, the same objects for each of them, watches with the same
// selectors, a certificate in a Secret, and a status from what the pods say. `cargo xtask journey --only "two hundred"` measures it beside ours.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"flag"
	"math/big"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const applied = "ds4.dev/applied"

type peer struct {
	client.Client
	// Secrets are read by name and not watched.
	direct client.Reader
}

func main() {
	namespace := flag.String("namespace", "many-peer", "the namespace that is watched")
	listen := flag.String("listen", "127.0.0.1:8081", "where the metrics are served")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	if err := run(*namespace, *listen); err != nil {
		ctrl.Log.Error(err, "the peer ends")
		os.Exit(1)
	}
}

func run(namespace, listen string) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, register} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{managedBy: owner})}
	manager, err := ctrl.NewManager(ctrl.GetConfigOrDie(), ctrl.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: listen},
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{namespace: {}},
			DefaultTransform:  cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&appsv1.StatefulSet{}: ours, &corev1.Service{}: ours, &corev1.ServiceAccount{}: ours, &corev1.Pod{}: ours,
				&policyv1.PodDisruptionBudget{}: ours, &networkingv1.NetworkPolicy{}: ours,
			},
		},
	})
	if err != nil {
		return err
	}
	p := &peer{Client: manager.GetClient(), direct: manager.GetAPIReader()}
	ofPod := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, pod client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: pod.GetNamespace(), Name: pod.GetLabels()[nameLabel]}}}
	})
	err = ctrl.NewControllerManagedBy(manager).
		For(&DS4Deployment{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&appsv1.StatefulSet{}).Owns(&corev1.Service{}).Owns(&corev1.ServiceAccount{}).
		Owns(&policyv1.PodDisruptionBudget{}).Owns(&networkingv1.NetworkPolicy{}).
		Watches(&corev1.Pod{}, ofPod).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(p)
	if err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}

func (p *peer) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var deployment DS4Deployment
	if err := p.Get(ctx, request.NamespacedName, &deployment); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if err := p.certificate(ctx, &deployment); err != nil {
		return reconcile.Result{}, err
	}
	all, err := objects(&deployment)
	if err != nil {
		return reconcile.Result{}, err
	}
	for _, object := range all {
		if err := p.apply(ctx, object); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{}, p.status(ctx, &deployment)
}

// Writes what differs from what was written last.
func (p *peer) apply(ctx context.Context, object client.Object) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(text)
	hash := hex.EncodeToString(digest[:8])
	known := object.DeepCopyObject().(client.Object)
	if err := p.Get(ctx, client.ObjectKeyFromObject(object), known); err == nil && known.GetAnnotations()[applied] == hash {
		return nil
	} else if client.IgnoreNotFound(err) != nil {
		return err
	}
	object.SetAnnotations(map[string]string{applied: hash})
	return p.Patch(ctx, object, client.Apply, client.FieldOwner(owner), client.ForceOwnership) //nolint:staticcheck // typed objects have no apply configuration here
}

func (p *peer) certificate(ctx context.Context, deployment *DS4Deployment) error {
	var secret corev1.Secret
	key := types.NamespacedName{Namespace: deployment.Namespace, Name: deployment.Name + "-tls"}
	if err := p.direct.Get(ctx, key, &secret); !apierrors.IsNotFound(err) {
		return err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: deployment.Name}, NotAfter: time.Now().Add(24 * time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return err
	}
	secret = corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: key.Name, Namespace: key.Namespace, Labels: map[string]string{managedBy: owner},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(deployment, version.WithKind("DS4Deployment"))}},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
			"tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded}),
		},
	}
	return p.Create(ctx, &secret)
}

func (p *peer) status(ctx context.Context, deployment *DS4Deployment) error {
	var pods corev1.PodList
	if err := p.List(ctx, &pods, client.InNamespace(deployment.Namespace), client.MatchingLabels{nameLabel: deployment.Name}); err != nil {
		return err
	}
	before := deployment.DeepCopy()
	condition := metav1.Condition{Type: "Degraded", Status: metav1.ConditionFalse, Reason: "AsExpected", ObservedGeneration: deployment.Generation}
	for _, pod := range pods.Items {
		for _, said := range pod.Status.Conditions {
			if said.Type == corev1.PodScheduled && said.Reason == corev1.PodReasonUnschedulable {
				condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, "Unschedulable", pod.Name+": "+said.Message
			}
		}
	}
	if !meta.SetStatusCondition(&deployment.Status.Conditions, condition) {
		return nil
	}
	return p.Status().Patch(ctx, deployment, client.MergeFrom(before))
}
