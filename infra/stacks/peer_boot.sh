# What a peer's instance does at its first boot, after the lines that wrote the two files of variables:
# /etc/peerless/peer.env, the container's whole environment, and /etc/peerless/host.env, which the host needs beside it.
# It makes Docker available and leaves the rest to systemd; whatever fails here switches the peer off again.

# shellcheck source=/dev/null
. /etc/peerless/host.env
instance=$(cat /var/lib/cloud/data/instance-id)
echo "INSTANCE=$instance" >>/etc/peerless/host.env

# The registry's password comes from a helper at the pull and is kept nowhere.
mkdir -p /etc/peerless/docker
echo "{\"credHelpers\": {\"${IMAGE%%/*}\": \"ecr-login\"}}" >/etc/peerless/docker/config.json

# --- The end comes first, so that everything after it can be ended. ---

cat >/usr/local/sbin/peerless-end <<'END'
#!/bin/bash
# Switches this peer off: its group is to have no instance, which ends this one and has none take its place.
# Goes on after a failure: without the log the peer must end all the same.
set -uo pipefail
export AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=8

# The container logs to CloudWatch by itself; why there was none is known here alone.
log="$STREAM/$INSTANCE/host"
journalctl --boot --unit=cloud-final --unit=docker --unit=peerless-peer --lines=200 --no-pager --output=short-iso |
    tail --bytes=200000 |
    python3 -c 'import json, sys, time
message = sys.stdin.buffer.read().decode(errors="replace") or "no log"
print(json.dumps([{"timestamp": int(time.time() * 1000), "message": message}]))' >/run/peerless-host-log.json
aws logs create-log-stream --log-group-name "$LOG_GROUP" --log-stream-name "$log"
aws logs put-log-events --log-group-name "$LOG_GROUP" --log-stream-name "$log" \
    --log-events file:///run/peerless-host-log.json >/run/peerless-host-log.answer

aws autoscaling set-desired-capacity --auto-scaling-group-name "$PEERLESS_GROUP" --desired-capacity 0
# The group ends the instance within minutes. Where that call failed, the group replaces what switches itself off, and
# its successor tries again.
shutdown --poweroff +10
END
chmod 755 /usr/local/sbin/peerless-end

cat >/etc/systemd/system/peerless-end.service <<'END'
[Unit]
Description=Switches this peer off
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
EnvironmentFile=/etc/peerless/peer.env
EnvironmentFile=/etc/peerless/host.env
ExecStart=/usr/local/sbin/peerless-end
END

# After an orderly exit the agent has set the group to 0 itself, or left it alone because another instance holds its
# rank. Either way nothing is left to do but to go.
cat >/etc/systemd/system/peerless-off.service <<'END'
[Unit]
Description=Powers this instance off, should the group not end it first

[Service]
Type=oneshot
ExecStart=/usr/sbin/shutdown --poweroff +10
END

# RuntimeMaxSec in the peer's own unit would not do: what it ends counts as failed, and Restart=on-failure starts that
# again.
cat >/etc/systemd/system/peerless-limit.timer <<END
[Unit]
Description=The longest that this instance may run

[Timer]
OnBootSec=${MAX_SECONDS}s
Unit=peerless-end.service

[Install]
WantedBy=timers.target
END

systemctl daemon-reload
systemctl enable --now peerless-limit.timer
trap 'systemctl start --no-block peerless-end.service' ERR

# --- The peer. ---

# Amazon Linux's own packages, from its repositories in S3. They are not part of the image: about 20 seconds.
installed=
for pause in 5 15 30 60 0; do
    if dnf install --assumeyes --quiet docker amazon-ecr-credential-helper; then
        installed=yes
        break
    fi
    sleep "$pause"
done
[ "$installed" = yes ]

# Exit status 1 is the agent's last word: the run or this peer has failed. Whatever else ends it is worth another try,
# five within an hour at most. TimeoutStopSec leaves room for Docker after the two minutes that the agent has from
# SIGTERM on.
cat >/etc/systemd/system/peerless-peer.service <<'END'
[Unit]
Description=Peerless peer
After=docker.service network-online.target
Wants=network-online.target
Requires=docker.service
StartLimitIntervalSec=3600
StartLimitBurst=5
OnFailure=peerless-end.service
OnSuccess=peerless-off.service

[Service]
Type=exec
EnvironmentFile=/etc/peerless/peer.env
EnvironmentFile=/etc/peerless/host.env
Environment=HOME=/root DOCKER_CONFIG=/etc/peerless/docker AWS_ECR_DISABLE_CACHE=true
ExecStartPre=-/usr/bin/docker rm --force peerless-peer
ExecStartPre=/usr/bin/docker pull --quiet ${IMAGE}
ExecStart=/usr/bin/docker run --rm --name peerless-peer --env-file /etc/peerless/peer.env \
    --cap-drop ALL --security-opt no-new-privileges --stop-timeout 120 \
    --log-driver awslogs --log-opt awslogs-region=${AWS_REGION} --log-opt awslogs-group=${LOG_GROUP} \
    --log-opt awslogs-stream=${STREAM}/${INSTANCE} --log-opt mode=non-blocking --log-opt max-buffer-size=8m \
    ${IMAGE}
ExecStop=/usr/bin/docker stop --time 120 peerless-peer
StandardOutput=null
TimeoutStartSec=20min
TimeoutStopSec=150
Restart=on-failure
RestartPreventExitStatus=1
RestartSec=15

[Install]
WantedBy=multi-user.target
END

systemctl daemon-reload
systemctl enable --now docker.service
systemctl enable peerless-peer.service
systemctl start --no-block peerless-peer.service
