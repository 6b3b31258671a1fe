#!/usr/bin/env bash
# Make all demo models on one machine with one or two GPUs. Run from the repository's root.
#   run_all.sh start            draw, then VAE, recogniser, detector, judge; encode (phase A, in the background)
#   run_all.sh base [SECONDS]   train the base from what phase A left (phase B, in the background)
#   run_all.sh wait SECONDS     show the log until the running phase ends, SECONDS at most
#   run_all.sh people [...]     draw the bundled people and the gallery (tools.demo_models.make_people)
#   run_all.sh check [...]      measure and make pictures (tools.demo_models.check)
#   run_all.sh collect FOLDER   pack everything made into FOLDER, in parts of 15 MB
# Settings by environment: WORK (scratch), DATA (drawn pictures), PEOPLE, EACH, VAE_S, REC_S, DET_S, JUDGE_S, EXTRA
# (more options for all trainers, e.g. "--smoke --device cpu").
set -u
WORK=${WORK:-/tmp/demo_work} PY=${PY:-python3}
PEOPLE=${PEOPLE:-20000} EACH=${EACH:-12} VAE_S=${VAE_S:-200} REC_S=${REC_S:-260} DET_S=${DET_S:-130} JUDGE_S=${JUDGE_S:-50} EXTRA=${EXTRA:-}
OUT=$WORK/demo LOG=$WORK/log
mkdir -p "$OUT" "$LOG"
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 TORCHINDUCTOR_CACHE_DIR=$WORK/inductor
GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
[ "${GPUS:-0}" -ge 1 ] || GPUS=0
LAST=$((GPUS > 1 ? 1 : 0))

room() { mkdir -p "$1" && df -BG --output=avail "$1" | tail -n 1 | tr -dc 0-9; } # free space in GB
if [ -z "${DATA:-}" ] && [ -f "$WORK/where" ]; then read -r DATA PEOPLE <"$WORK/where"; fi
if [ -z "${DATA:-}" ]; then # memory where there is enough of it, else the disk; fewer people where neither has
  need=$((PEOPLE * EACH * 197 / 1000000 + 2)) DATA=/dev/shm/drawn
  [ "$(room /dev/shm)" -ge $need ] || mount -o remount,size=70G /dev/shm 2>/dev/null
  if [ "$(room /dev/shm)" -lt $need ]; then
    DATA=$WORK/drawn
    [ "$(room "$WORK")" -ge $need ] || PEOPLE=$((($(room "$WORK") - 4) * 1000000 / 197 / EACH))
  fi
  echo "$DATA $PEOPLE" >"$WORK/where"
fi

on() { # on GPU NAME module options…: run a trainer with its own log
  local gpu=$1 name=$2 module=$3; shift 3
  if [ "$GPUS" -gt 0 ]; then export CUDA_VISIBLE_DEVICES=$gpu; fi
  OMP_NUM_THREADS=${THREADS:-4} $PY -m tools.demo_models."$module" "$@" $EXTRA >"$LOG/$name.log" 2>&1 || echo "$name FAILED" >>"$LOG/failed"
}

phase_a() {
  rm -f "$LOG"/failed "$LOG"/*.log
  local extra=$EXTRA; EXTRA=${EXTRA//--no-compile/}
  if [ "$GPUS" -gt 1 ]; then
    (on 0 draw0 dataset --out "$DATA" --people "$PEOPLE" --each "$EACH" --rank 0 --ranks 2) &
    (on 1 draw1 dataset --out "$DATA" --people "$PEOPLE" --each "$EACH" --rank 1 --ranks 2) &
    wait
  else
    (on 0 draw0 dataset --out "$DATA" --people "$PEOPLE" --each "$EACH")
  fi
  EXTRA=$extra
  [ -f "$DATA/facts.json" ] || { echo "no pictures; see $LOG/draw0.log"; return 1; }
  (on $LAST recogniser train_recogniser --data "$DATA" --out "$OUT" --seconds "$REC_S" --vae "$OUT/sdxl/vae") &
  (on $LAST detector train_detector --data "$DATA" --out "$OUT" --seconds "$DET_S"
   on $LAST judge train_judge --data "$DATA" --out "$OUT" --seconds "$JUDGE_S"
   [ "$GPUS" -gt 1 ] || on $LAST warm train_base --out "$OUT" --warm-only) &
  on 0 vae train_vae --data "$DATA" --out "$OUT" --seconds "$VAE_S"
  local device=""; [[ $EXTRA == *cpu* ]] && device="--device cpu"
  EXTRA=$device on 0 encode encode --data "$DATA" --vae "$OUT/sdxl/vae"
  wait
  echo "phase A ended"
}

phase_b() {
  local many="$PY -m"
  [ "$GPUS" -gt 1 ] && many="$PY -m torch.distributed.run --standalone --nproc-per-node $GPUS -m"
  OMP_NUM_THREADS=4 $many tools.demo_models.train_base --data "$DATA" --out "$OUT" --seconds "$1" --checkpoint "$WORK/base.pt" $EXTRA \
    >"$LOG/base.log" 2>&1 || echo "base FAILED" >>"$LOG/failed"
  echo "phase B ended"
}

export WORK DATA PEOPLE EACH VAE_S REC_S DET_S JUDGE_S EXTRA PY

background() { # start a phase in a process session of its own, so that it outlives this call
  rm -f "$WORK/ended"
  setsid nohup bash -c "bash '$0' _$1 ${2:-}; touch '$WORK/ended'" >"$LOG/phase_$1.out" 2>&1 </dev/null &
  echo "phase $1 started on $GPUS GPUs with $PEOPLE people in $DATA; logs in $LOG"
}

case ${1:-} in
  start) background a ;;
  base) background b "${2:-720}" ;;
  _a) phase_a ;;
  _b) phase_b "$2" ;;
  wait)
    end=$((SECONDS + ${2:-500}))
    while [ $SECONDS -lt $end ] && [ ! -f "$WORK/ended" ]; do
      sleep 10
      for log in "$LOG"/*.log; do [ $(($(date +%s) - $(stat -c %Y "$log"))) -lt 11 ] && tail -n 1 "$log" | cut -c 1-160; done
    done
    [ -f "$WORK/ended" ] && echo "ended" || echo "still running"
    cat "$LOG/failed" 2>/dev/null && for log in $(sed "s|\(.*\) FAILED|$LOG/\1.log|" "$LOG/failed"); do tail -n 15 "$log"; done
    grep -h "done\|detector\] \(canv\|whole\)\|latents in\|compiled\|all written" "$LOG"/*.log | cut -c 1-330 ;;
  people) shift; $PY -m tools.demo_models.make_people --models "$OUT" --sheet "$LOG/candidates.png" "$@" ;;
  check) shift; $PY -m tools.demo_models.check --models "$OUT" --judge "$OUT/judge.safetensors" --out "$WORK/check" "$@" 2>&1 | grep -v "kept in float32" ;;
  collect)
    mkdir -p "$2"
    tar -C "$WORK" -cf - demo log | split -b 15000000 - "$2/demo.tar."
    cp "$WORK"/check/*.png "$WORK"/check/figures.json "$2"/ 2>/dev/null
    ls -l "$2" ;;
  *) sed -n 2,11p "$0" ;;
esac
