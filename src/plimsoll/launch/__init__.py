"""Launch: starts the planned processes, keeps them up, and knows what runs even after Plimsoll itself was killed.

supervisor   Fleet: all replicas of a deployment; what `app` calls
owner        one task per replica: takes events, runs `transition`, carries out the effects
transition   the state machine, pure: planned -> starting -> ready -> backoff | failed -> stopping -> stopped
group        the processes of one attempt: start in order, await a real token, end together
watch        after that: lost workers, health routes that lie, hangs told from hard work
run          one run of one process, its log and how it ended
process      sessions, pidfds, marks in the environment; ending everything that was begotten
recover      what runs as the operating system sees it; stopping it from another process
state        the SQLite file
identity, ending, files, logs, observe, probe, vitals: one question each
"""
