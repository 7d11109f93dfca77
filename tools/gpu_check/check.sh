#!/usr/bin/env bash
# The whole truth about the GPU path, on a machine that has one and no internet; see README.md.
# Prints PASS, FAIL and INFO lines and tables, the failures last; logs go to $OUT. Ends with 1 if
# something has failed or was skipped. The stages' limits add up to less than the whole one.
cd "$(dirname "$0")/../.." || exit 1
OUT=${OUT:-${TMPDIR:-/tmp}/gpu-out}; mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD:$PWD/client${PYTHONPATH:+:$PYTHONPATH}
PY=${PY:-python3}; LIMIT=${LIMIT:-470}; SITE=${SITE:-${TMPDIR:-/tmp}/site}; BEGAN=$SECONDS
exec > >(tee "$OUT/all.txt") 2>&1
WHEELS=${WHEELS:-.whl}
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$SITE" "$WHEELS"/*.whl && export PYTHONPATH=$PYTHONPATH:$SITE \
    || { echo "FAIL wheels"; exit 1; }
fi
wanted() { [ -z "$ONLY" ] || [[ ",$ONLY," == *",$1,"* ]]; }  # ONLY=numbers,bits: some stages
stage() {  # name, seconds at most, command...
  local name=$1 most=$(($2 * ${PATIENCE:-1})) left=$((LIMIT - (SECONDS - BEGAN))) start=$SECONDS; shift 2
  wanted "$name" || return
  ((left < 10)) && { echo "SKIP $name: no time left"; return; }
  ((most > left)) && most=$left
  echo "== $name (at $((SECONDS - BEGAN)) s)"
  timeout -k 5 "$most" "$@" >"$OUT/$name.log" 2>&1; local code=$?
  case $name in
    tests|memcheck|racecheck|synccheck|initcheck|ncu)
      grep -aE "passed|failed|skipped|rror|SUMMARY|FAILED|__" "$OUT/$name.log" | tail -30 ;;
    *) tail -200 "$OUT/$name.log" ;;
  esac | cut -c1-240
  ((code == 0)) && echo "PASS stage $name s=$((SECONDS - start))" \
    || echo "FAIL stage $name code=$code s=$((SECONDS - start))"
}
CHECK="$PY -m tools.gpu_check"
stage environment 20 $CHECK.device environment
stage bits 25 $CHECK.device bits
stage speed 80 "$PY" -m benchmarks.gpu
stage http 75 $CHECK.over_http
stage tests 50 "$PY" -m pytest -m gpu -p no:cacheprovider -o addopts= -ra -q \
  tests/test_service/test_engine tests/test_models/test_backends/test_fused.py
if wanted tests; then  # pytest ends well when all is skipped; that is no success here
  grep -aEq "[1-9][0-9]* passed" "$OUT/tests.log" && ! grep -aEq "skipped|failed|error" "$OUT/tests.log" \
    && echo "PASS gpu tests ran" || echo "FAIL gpu tests: skipped or failed"
fi
stage numbers 25 $CHECK.device numbers
stage shapes 25 $CHECK.device shapes
stage memory 25 $CHECK.device memory
stage dead 15 $CHECK.device dead
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    # NVIDIA's bindings ask for functions that a driver may not have: no error of ours.
    stage $tool 24 compute-sanitizer --tool $tool --kernel-regex kns=world_model \
      --report-api-errors no --error-exitcode 9 $CHECK.watched 17 2
  done
else echo "INFO no compute-sanitizer"; fi
if command -v ncu >/dev/null; then
  stage ncu 30 ncu --clock-control none --kernel-name regex:world_model_rollout --launch-count 1 \
    --metrics gpu__time_duration.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed,l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum,l1tex__data_pipe_lsu_wavefronts.sum,smsp__inst_executed_pipe_fma.sum,lts__t_sectors_op_read.sum,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread \
    $CHECK.watched 4096 4
else echo "INFO no ncu"; fi
cd "$OUT" && tar -czf stages.tgz ./*.log && rm -f ./*.log
sleep 1
echo "== all: $(grep -c '^PASS' all.txt) PASS, $(grep -c '^FAIL' all.txt) FAIL, $((SECONDS - BEGAN)) s; the failures:"
! grep '^FAIL\|^SKIP' all.txt
