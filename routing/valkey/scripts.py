"""The steps that must be one step on the server. Times are the server's, in milliseconds.

What they keep, each key behind the transport's ``global_keyprefix``:

- ``_umbel.consumers``: sorted set of consumers, each with the time its lease ends; 0 once it is
  declared dead and its claims are being given back.
- ``_umbel.claims.<consumer>``: hash of what a consumer has in flight: ``<number>.<channel>`` ->
  ``<length of the list's key>:<the list's key><element>``.
- ``_umbel.begun.<consumer>``: set of the claims whose job has begun.
- ``_umbel.own.<consumer>``: set of the queues that end with a consumer, in JSON: the sets of
  bindings that each is in, its member there, its ready lists.
- ``_umbel.fence``: the last claim's number; numbers only grow.
- ``_umbel.delayed``: sorted set of what waits for its time: ``<claim's name> <length of the list's
  key>:<the list's key><element>``.
- ``_umbel.beat_at``: when a consumer was last heard.
- ``_umbel.watchers``: hash queue -> the one consumer that waits to be told of new messages.
- ``_umbel.waiting.<queue>``: set of the others that have room, for the watcher to wake.
- ``_umbel.lock.<queue>``: of a queue that keeps its order, the claim of which one is in flight:
  ``<key of the claims> <its name>``. It holds as long as that claim is there.
"""

from __future__ import annotations

DELAYED = "_umbel.delayed"
"""The key of what waits for its time, without the prefix."""

# Put an element into each of some ready lists. KEYS: the lists. ARGV: the elements.
PUT = "for i, key in ipairs(KEYS) do redis.call('LPUSH', key, ARGV[i]) end"

# Say that a consumer lives, and declare dead who has not said so for a lease.
# KEYS: consumers, beat_at. ARGV: consumer, lease in ms, time between beats in ms, 1 for a new one.
# Returns whether its lease still held, then the dead whose claims are not all back yet.
BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease, pause = tonumber(ARGV[2]), tonumber(ARGV[3])
local ends = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local lives = ARGV[4] == '1' or ends > 0
local heard = tonumber(redis.call('GET', KEYS[2]) or 0)
redis.call('SET', KEYS[2], now)
-- Time in which the server was away, nobody was there or its clock jumped counts for nobody: who
-- could have said that it lives?
local unheard = now - heard - pause
if unheard < -pause or unheard > pause then
    local others = redis.call('ZRANGEBYSCORE', KEYS[1], '(0', '+inf', 'WITHSCORES')
    for i = 1, #others, 2 do
        local later = math.min(others[i + 1] + unheard, now + lease)
        redis.call('ZADD', KEYS[1], later, others[i])
    end
end
if lives then redis.call('ZADD', KEYS[1], now + lease, ARGV[1]) end
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(0', now)) do
    redis.call('ZADD', KEYS[1], 0, other)
end
return {lives and 1 or 0, unpack(redis.call('ZRANGEBYSCORE', KEYS[1], 0, 0))}
"""

# Move messages from ready lists into a consumer's claims, and settle who is told of new ones: one
# of those that have room, the watcher, which wakes another before it is busy itself.
# KEYS: consumers, claims, fence, watchers, then for each queue its waiting set, then for each its
# lock, then the ready lists in the order in which they are served.
# ARGV: consumer, which of its channels, most messages, prefix of the wake-up channels, how many
# queues, for each its name, most messages of it ('' for any number) and '1' if only one may be in
# flight; then for each list the number of its queue, 0 for none.
# Returns false if the lease is lost, else: the number of the first claim (the others follow it),
# the queues that this channel must watch, those of them of which one is in flight, how many came of
# each list, the elements.
CLAIM = """
local me, room, wake = ARGV[1] .. '.' .. ARGV[2], tonumber(ARGV[3]), ARGV[4]
local function lives(consumer)
    return tonumber(redis.call('ZSCORE', KEYS[1], consumer) or 0) > 0
end
local function listens(waiter)
    return waiter and lives(string.match(waiter, '^[^.]*'))
        and redis.call('PUBSUB', 'NUMSUB', wake .. waiter)[2] > 0
end
if not lives(ARGV[1]) then return false end
local queues, names, left, locks = tonumber(ARGV[5]), {}, {[0] = room}, {}
for i = 1, queues do
    names[i], left[i] = ARGV[3 + 3 * i], tonumber(ARGV[4 + 3 * i]) or room
    if ARGV[5 + 3 * i] == '1' then
        locks[i] = KEYS[4 + queues + i]
        local holder, claim = string.match(redis.call('GET', locks[i]) or '', '^(%S+) (%S+)$')
        if holder and redis.call('HEXISTS', holder, claim) == 1 then left[i] = 0 end
    end
end
local full = {}
for i = 1, queues do full[i] = left[i] == 0 and not locks[i] end
local time = redis.call('TIME')
local first = math.max(time[1] * 1000000 + time[2], tonumber(redis.call('GET', KEYS[3]) or 0) + 1)
local counts, elements, claims = {}, {}, {}
for list = 5 + 2 * queues, #KEYS do
    local key, queue = KEYS[list], tonumber(ARGV[#ARGV - #KEYS + list])
    local most = math.min(room - #elements, left[queue])
    -- pcall: a key of another type is no reason to lose what was taken before.
    local taken = most > 0 and redis.pcall('RPOP', key, most) or {}
    counts[#counts + 1] = #taken
    left[queue] = left[queue] - #taken
    if left[queue] == 0 and not locks[queue] then full[queue] = true end
    local head = #key .. ':' .. key
    for _, element in ipairs(taken) do
        local name = string.format('%.0f.', first + #elements) .. ARGV[2]
        elements[#elements + 1] = element
        claims[#claims + 1], claims[#claims + 2] = name, head .. element
        if locks[queue] then redis.call('SET', locks[queue], KEYS[2] .. ' ' .. name) end
    end
end
for i = 1, #claims, 1000 do
    redis.call('HSET', KEYS[2], unpack(claims, i, math.min(i + 999, #claims)))
end
if #elements > 0 then
    redis.call('SET', KEYS[3], string.format('%.0f', first + #elements - 1))
end
local watch, locked = {}, {}
for i = 1, queues do
    local queue, waiting = names[i], KEYS[4 + i]
    local watcher = redis.call('HGET', KEYS[4], queue)
    if full[i] or #elements == room then
        redis.call('SREM', waiting, me)
        if watcher == me then
            redis.call('HDEL', KEYS[4], queue)
            local other = redis.call('SPOP', waiting)
            while other and redis.call('PUBLISH', wake .. other, queue) == 0 do
                other = redis.call('SPOP', waiting)
            end
        end
    elseif watcher == me or not listens(watcher) then
        redis.call('HSET', KEYS[4], queue, me)
        redis.call('SREM', waiting, me)
        watch[#watch + 1] = queue
        if locks[i] and left[i] == 0 then locked[#locked + 1] = queue end
    else
        redis.call('SADD', waiting, me)
    end
end
return {string.format('%.0f', first), watch, locked, counts, elements}
"""

# Note what has begun and drop what is done with.
# KEYS: claims, begun, then the locks of queues of which one was done with.
# ARGV: how many have begun, their names, the names of what is done with.
# Returns how many of the latter were not there any more: taken over by others.
SETTLE = """
local begun, missing = tonumber(ARGV[1]), 0
for i = 2, 1 + begun do
    if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then redis.call('SADD', KEYS[2], ARGV[i]) end
end
for i = 2 + begun, #ARGV, 1000 do
    local last = math.min(i + 999, #ARGV)
    missing = missing + last - i + 1 - redis.call('HDEL', KEYS[1], unpack(ARGV, i, last))
    redis.call('SREM', KEYS[2], unpack(ARGV, i, last))
end
for i = 3, #KEYS do
    local holder, claim = string.match(redis.call('GET', KEYS[i]) or '', '^(%S+) (%S+)$')
    if holder and redis.call('HEXISTS', holder, claim) == 0 then redis.call('DEL', KEYS[i]) end
end
return missing
"""

# Put claims back where they came from, to be the next to be taken: the last claim first, so that
# the order is kept.
# KEYS: claims, begun, consumers.
# ARGV: consumer, then pairs of a claim's name and its new element, '' for the one it has.
# Returns how many went back.
RESTORE = """
local back = 0
for i = 2, #ARGV, 2 do
    local claim = redis.call('HGET', KEYS[1], ARGV[i])
    if claim then
        redis.call('HDEL', KEYS[1], ARGV[i])
        redis.call('SREM', KEYS[2], ARGV[i])
        local colon = string.find(claim, ':', 1, true)
        local ends = colon + tonumber(string.sub(claim, 1, colon - 1))
        local element = ARGV[i + 1]
        if element == '' then element = string.sub(claim, ends + 1) end
        redis.call('RPUSH', string.sub(claim, colon + 1, ends), element)
        back = back + 1
    end
end
if redis.call('ZSCORE', KEYS[3], ARGV[1]) == '0' and redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('ZREM', KEYS[3], ARGV[1])
end
return back
"""

# Take a message whose time has not come out of the claims, until then.
# KEYS: claims, delayed. ARGV: the claim's name, milliseconds from now, its new element.
# Returns whether it was there.
PARK = """
local claim = redis.call('HGET', KEYS[1], ARGV[1])
if not claim then return 0 end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
local colon = string.find(claim, ':', 1, true)
local head = string.sub(claim, 1, colon + tonumber(string.sub(claim, 1, colon - 1)))
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], due, ARGV[1] .. ' ' .. head .. ARGV[3])
return 1
"""

# Put what is due into the lists it came from, as the last to be taken.
# KEYS: delayed. ARGV: most messages of one step.
# Returns milliseconds until the next is due; -1 for none.
UNPARK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, parked in ipairs(due) do
    local begin = string.find(parked, ' ', 1, true)
    local colon = string.find(parked, ':', begin, true)
    local ends = colon + tonumber(string.sub(parked, begin + 1, colon - 1))
    redis.call('LPUSH', string.sub(parked, colon + 1, ends), string.sub(parked, ends + 1))
    redis.call('ZREM', KEYS[1], parked)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, next[2] - now) or -1
"""


def split_claim(claim: bytes) -> tuple[str, bytes]:
    """The ready list's key and the element, of a value in the claims."""
    length, _, rest = claim.partition(b":")
    return rest[: int(length)].decode(), rest[int(length) :]
