{{- define "tenth.labels" -}}
app.kubernetes.io/name: tenth
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "tenth.image" -}}
{{- $name := .name -}}
{{- if .service }}{{ $name = .service.imageName | default .name }}{{ end -}}
{{- $built := printf "%s-%s:%s" .root.Values.image.repository $name (.root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- if .service }}{{ .service.image | default $built }}{{ else }}{{ $built }}{{ end }}
{{- end }}

{{- define "tenth.probe" -}}
{{- if .root.Values.tls.existingSecret -}}
exec:
  command:
    - python
    - -m
    - mesh.healthcheck
    {{- with .root.Values.tls.serverName }}
    - --server-name={{ . }}
    {{- end }}
{{- else -}}
grpc: { port: {{ .service.port }} }
{{- end }}
{{- end }}

{{- define "tenth.value" -}}
{{ .value | toString | replace "{release}" .root.Release.Name | replace "{qdrant}" .root.Values.qdrant.url | replace "{postgres}" .root.Values.postgres.url | replace "{batchStore}" .root.Values.batch.storeUrl | replace "{temporal}" .root.Values.temporal.address | replace "{temporalNamespace}" .root.Values.temporal.namespace | quote }}
{{- end }}

{{/* One container: a service's, or the engine beside a batch worker. */}}
{{- define "tenth.container" -}}
{{- $root := .root -}}
{{- $service := .service -}}
- name: {{ .name }}
  image: {{ include "tenth.image" . }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  args: [python, -m, {{ $service.module | default (printf "services.%s" .name) }}]
  ports:
    - { name: {{ $service.portName | default "grpc" }}, containerPort: {{ $service.port }} }
  env:
    - { name: TENTH_LISTEN, value: "0.0.0.0:{{ $service.port }}" }
    - { name: TENTH_DATA_DIR, value: /var/lib/tenth/data }
    - { name: TENTH_CALLERS_FILE, value: /etc/tenth/callers.yaml }
    - { name: TENTH_IDENTITY_KEY_FILE, value: /run/secrets/tenth/identity_key }
    - { name: TENTH_OTLP_ENDPOINT, value: {{ $root.Values.otlp.endpoint | quote }} }
    - { name: TENTH_TRACE_SAMPLE_RATIO, value: {{ $root.Values.otlp.sampleRatio | quote }} }
    - { name: TENTH_LOG_LEVEL, value: {{ $root.Values.logLevel | quote }} }
    - { name: TENTH_DRAIN_SECONDS, value: {{ $service.drainSeconds | default $root.Values.drainSeconds | quote }} }
    - { name: TENTH_UNREADY_SECONDS, value: {{ $root.Values.unreadySeconds | quote }} }
    {{- if $root.Values.tls.existingSecret }}
    - { name: TENTH_TLS_CERT_FILE, value: /run/secrets/tls/tls.crt }
    - { name: TENTH_TLS_KEY_FILE, value: /run/secrets/tls/tls.key }
    - { name: TENTH_TLS_CA_FILE, value: /run/secrets/tls/ca.crt }
    {{- end }}
    {{- if not (hasKey $service.env "OMP_NUM_THREADS") }}
    - { name: OMP_NUM_THREADS, value: "1" }
    {{- end }}
    {{- range $key, $value := $service.env }}
    - name: {{ $key }}
      value: {{ include "tenth.value" (dict "root" $root "value" $value) }}
    {{- end }}
    {{- if and $service.objects $root.Values.batch.credentialsSecret }}
    - { name: AWS_SHARED_CREDENTIALS_FILE, value: /run/secrets/objects/credentials }
    {{- end }}
    {{- if $service.providerKeys }}
    {{- range list "openai" "anthropic" "gemini" }}
    - { name: {{ upper . }}_API_KEY_FILE, value: /run/secrets/providers/{{ . }}_api_key }
    {{- end }}
    {{- end }}
  startupProbe:
    {{- include "tenth.probe" . | nindent 4 }}
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: {{ div ($service.startupSeconds | default 120) 5 }}
  readinessProbe:
    {{- include "tenth.probe" . | nindent 4 }}
    periodSeconds: 5
    timeoutSeconds: 5
  livenessProbe:
    # Only that the process answers: a store that is down makes a pod unready, and restarting it would not help.
    tcpSocket: { port: {{ $service.portName | default "grpc" }} }
    periodSeconds: 15
    failureThreshold: 4
  resources:
    {{- toYaml $service.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: { drop: [ALL] }
  volumeMounts:
    - { name: config, mountPath: /etc/tenth, readOnly: true }
    - { name: secrets, mountPath: /run/secrets/tenth, readOnly: true }
    - { name: {{ $service.dataVolume | default "data" }}, mountPath: /var/lib/tenth/data }
    {{- if $root.Values.tls.existingSecret }}
    - { name: tls, mountPath: /run/secrets/tls, readOnly: true }
    {{- end }}
    {{- if $service.providerKeys }}
    - { name: provider-keys, mountPath: /run/secrets/providers, readOnly: true }
    {{- end }}
    {{- if and $service.objects $root.Values.batch.existingClaim }}
    - { name: objects, mountPath: /var/lib/tenth/objects }
    {{- end }}
    {{- if and $service.objects $root.Values.batch.credentialsSecret }}
    - { name: objects-credentials, mountPath: /run/secrets/objects, readOnly: true }
    {{- end }}
    {{- if $service.models }}
    - { name: models, mountPath: /var/lib/tenth/models, readOnly: true }
    {{- end }}
{{- end }}

{{/* The pod of one service or batch worker: the same for a Deployment and a StatefulSet. */}}
{{- define "tenth.pod" -}}
{{- $root := .root -}}
{{- $service := .service -}}
{{- $models := or $service.models ($service.engine | default dict).models -}}
metadata:
  labels:
    {{- include "tenth.labels" . | nindent 4 }}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ add ($service.drainSeconds | default $root.Values.drainSeconds) $root.Values.unreadySeconds 15 }}
  {{- if and $service.objects $root.Values.batch.serviceAccountName }}
  serviceAccountName: {{ $root.Values.batch.serviceAccountName }}
  {{- end }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    fsGroup: 10001
    seccompProfile: { type: RuntimeDefault }
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "tenth.labels" . | nindent 10 }}
  {{- with $service.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $models (not $root.Values.models.existingClaim) }}
  initContainers:
    - name: models
      image: {{ include "tenth.image" (dict "root" $root "name" "models") }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -m, models.build]
      env:
        - { name: TENTH_MODELS_DIR, value: /var/lib/tenth/models }
      volumeMounts:
        - { name: models, mountPath: /var/lib/tenth/models }
  {{- end }}
  containers:
    {{- include "tenth.container" . | nindent 4 }}
    {{- with $service.engine }}
    {{- include "tenth.container" (dict "root" $root "name" "engine" "service" .) | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap: { name: {{ $root.Values.config.existingConfigMap }} }
    - name: secrets
      secret:
        secretName: {{ $root.Values.secrets.existingSecret }}
        items:
          - { key: identity_key, path: identity_key }
          {{- if $service.database }}
          - { key: postgres_password, path: postgres_password }
          {{- end }}
          {{- if hasKey $service.env "TENTH_LEDGER_ALERT_KEY_FILE" }}
          - { key: alert_key, path: alert_key }
          {{- end }}
    {{- if $service.providerKeys }}
    - name: provider-keys
      secret: { secretName: {{ $root.Values.secrets.existingSecret }}, optional: true }
    {{- end }}
    {{- if not $service.persistent }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- if $service.engine }}
    - name: engine-data
      emptyDir: {}
    {{- end }}
    {{- if and $service.objects $root.Values.batch.existingClaim }}
    - name: objects
      persistentVolumeClaim: { claimName: {{ $root.Values.batch.existingClaim }} }
    {{- end }}
    {{- if and $service.objects $root.Values.batch.credentialsSecret }}
    - name: objects-credentials
      secret: { secretName: {{ $root.Values.batch.credentialsSecret }} }
    {{- end }}
    {{- with $root.Values.tls.existingSecret }}
    - name: tls
      secret: { secretName: {{ . }} }
    {{- end }}
    {{- if $models }}
    - name: models
      {{- if $root.Values.models.existingClaim }}
      persistentVolumeClaim: { claimName: {{ $root.Values.models.existingClaim }}, readOnly: true }
      {{- else }}
      emptyDir: { sizeLimit: {{ $root.Values.models.sizeLimit }} }
      {{- end }}
    {{- end }}
{{- end }}
