#!/usr/bin/env bash
# with_virtual_audio.sh COMMAND...   runs COMMAND beside a private PulseAudio server, and keeps its exit status
#
#   speak into the microphone:  pacat --device=virtmic ...            the program hears it on pse_mic
#   hear the loudspeaker:       parec --device=virtspk.monitor ...    the program plays on pse_speaker
#
# "$PSE_SOUND_SERVER_START" starts the server again after a test has killed it.
set -eu

XDG_RUNTIME_DIR="$(mktemp -d)"; export XDG_RUNTIME_DIR; chmod 700 "$XDG_RUNTIME_DIR"
export PULSE_SOURCE=virtual_mic PULSE_SINK=virtspk PSE_SOUND_SERVER=1

# Audio comes before other work, as on a desktop, if we may. PSE_SOUND_PRIORITY="" takes that away.
export PSE_SOUND_PRIORITY="${PSE_SOUND_PRIORITY-chrt --rr 5}"
$PSE_SOUND_PRIORITY true 2> /dev/null || PSE_SOUND_PRIORITY=""

# float32 from end to end, one rate: nothing in the server changes a sample. Without norewinds, a null sink asks for two
# seconds at a time until it knows better.
export PSE_SOUND_SERVER_START="$XDG_RUNTIME_DIR/start"
cat > "$PSE_SOUND_SERVER_START" <<'START'
#!/usr/bin/env bash
set -eu
rm -rf "$XDG_RUNTIME_DIR/pulse"     # of a server that was killed: its number may look alive
$PSE_SOUND_PRIORITY pulseaudio -n --daemonize=yes --exit-idle-time=-1 --log-target="file:$XDG_RUNTIME_DIR/pulse.log" \
  -L "module-native-protocol-unix" \
  -L "module-null-sink sink_name=virtmic rate=48000 channels=1 format=float32le norewinds=1" \
  -L "module-remap-source master=virtmic.monitor source_name=virtual_mic" \
  -L "module-null-sink sink_name=virtspk rate=48000 channels=1 format=float32le norewinds=1" 2> "$XDG_RUNTIME_DIR/start.log"
for _ in $(seq 50); do pactl info > /dev/null 2>&1 && exit 0; sleep 0.1; done
echo "the sound server did not start:" >&2
cat "$XDG_RUNTIME_DIR/start.log" "$XDG_RUNTIME_DIR/pulse.log" >&2
exit 1
START
chmod +x "$PSE_SOUND_SERVER_START"

# devices with names of their own, so that choosing one can be tried
export ALSA_CONFIG_PATH="$XDG_RUNTIME_DIR/asound.conf"
cat > "$ALSA_CONFIG_PATH" <<'ALSA'
</usr/share/alsa/alsa.conf>
pcm.pse_mic { type pulse device "virtual_mic" hint { show on description "virtual microphone" } }
pcm.pse_speaker { type pulse device "virtspk" hint { show on description "virtual loudspeaker" } }
ALSA

trap 'pulseaudio --kill 2> /dev/null || true; rm -rf "$XDG_RUNTIME_DIR"' EXIT
"$PSE_SOUND_SERVER_START"
$PSE_SOUND_PRIORITY "$@"
