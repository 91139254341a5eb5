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

{{- /* With the address that a PodMonitor asks, where the configuration names none (IPv6 alone needs "[::]:port"). */ -}}
{{- define "nodesentry.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.podMonitor.enabled -}}
{{- $port := int .Values.podMonitor.port -}}
{{- $config = merge $config (dict "metrics" (dict "listen" (printf "0.0.0.0:%d" $port))) -}}
{{- if not (hasSuffix (printf ":%d" $port) $config.metrics.listen) -}}
{{- fail (printf "config.metrics.listen is %s, but podMonitor.port is %d: give both the same port" $config.metrics.listen $port) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}

{{- /* The agent's own default where the configuration names no endpoint. */ -}}
{{- define "nodesentry.runtimeFolder" -}}
{{ .Values.config.sources.cri.endpoint | default "unix:///run/containerd/containerd.sock" | trimPrefix "unix://" | dir }}
{{- end }}
