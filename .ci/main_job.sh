#!/usr/bin/env bash
# The README's first command, then everything a user does next, checked for real answers.
set -euo pipefail
log=$(mktemp)
plimsoll up --detach --port 0 | tee "$log"
grep -q 'tokens/s' "$log"
address=$(plimsoll ps --json | python -c 'import json,sys; print(json.load(sys.stdin)[0]["address"])')
plimsoll status
answer=$(plimsoll chat --max-tokens 24 "Name a colour.")
[ -n "$answer" ] || { echo "no answer"; exit 1; }
echo "answer: $answer"
python - "$address" <<'PY'
import sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
model = client.models.list().data[0].id
text = client.chat.completions.create(model=model, max_tokens=16, messages=[{"role": "user", "content": "Say hi."}])
assert text.choices[0].message.content.strip(), text
chunks = list(client.completions.create(model=model, prompt="One, two,", max_tokens=8, stream=True))
assert len(chunks) > 2, chunks
print("openai-python:", text.choices[0].message.content.strip()[:60])
PY
plimsoll logs | tail -n 3
plimsoll down
[ "$(plimsoll ps --json)" = "[]" ]
# Every process that Plimsoll starts carries the state directory that it belongs to.
if grep -lsz "^PLIMSOLL_RUN=.*@$PLIMSOLL_HOME/" /proc/[0-9]*/environ; then
  echo "an engine was left running"
  exit 1
fi
rm -f "$log"
