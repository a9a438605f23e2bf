{{- define "ds4.name" -}}
{{- if contains "ds4" .Release.Name }}{{ .Release.Name | trunc 50 }}{{ else }}{{ printf "%s-ds4" .Release.Name | trunc 50 }}{{ end -}}
{{- end }}

{{- define "ds4.labels" -}}
app.kubernetes.io/name: ds4-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ds4.selector" -}}
app.kubernetes.io/name: ds4-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* An image by digest, by tag, or by the chart's own version. */ -}}
{{- define "ds4.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}{{ else }}{{ .image.repository }}:{{ .image.tag | default .version }}{{ end -}}
{{- end }}
{{- /* The kind of the operator's role: for all namespaces, or for the one that it watches. */ -}}
{{- define "ds4.role" -}}
{{- if .Values.watchNamespace }}Role{{ else }}ClusterRole{{ end }}
{{- end }}
