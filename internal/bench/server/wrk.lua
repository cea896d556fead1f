-- As many requests as there are users, each from another one and for all routes in
-- turn; made ahead, since wrk shares its cores with the server.
local requests, sent = {}, 0

function init(args)
  local routes, users = tonumber(args[1]), tonumber(args[2])
  for i = 1, users do
    local user = i * 7919 % users
    requests[i] = wrk.format("GET", "/r" .. i % routes .. "/17", {["X-User"] = "u" .. user})
  end
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

-- The last line of what wrk prints.
function done(summary, latency)
  local e = summary.errors
  print(string.format('{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"errors":%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
