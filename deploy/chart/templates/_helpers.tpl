{{- /* An agent is one to a node, so the release is one to a cluster: names are fixed, and a second release is refused. */ -}}
{{- define "nodesentry.labels" -}}
app.kubernetes.io/name: nodesentry
{{- end }}

{{- define "nodesentry.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The agent's own default where the configuration names no endpoint. */ -}}
{{- define "nodesentry.runtimeFolder" -}}
{{ .Values.config.sources.cri.endpoint | default "unix:///run/containerd/containerd.sock" | trimPrefix "unix://" | dir }}
{{- end }}
