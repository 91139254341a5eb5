-- Where an app that dials the proxy by itself asks to go, by the URI of its request: kept in variables of the transaction, and
-- told to the agent, so that "nodesentry flows" shows it. See explicit/haproxy.cfg.
local AGENT = "/run/nodesentry/http.sock"
local TIMEOUT_S = 2
local HTTP_PORT = "80"

-- Host and port of an absolute URI (RFC 9112, 3.2.2), an IPv6 address without its brackets; nil for any other.
local function target(uri)
  local authority = uri:match("^[hH][tT][tT][pP]://([^/?#]+)")
  if not authority then
    return nil
  end
  authority = authority:gsub("^.*@", "")
  local host, port = authority:match("^%[([%x:.]+)%]:?(%d*)$")
  if not host then
    host, port = authority:match("^([%w_.-]+):?(%d*)$")
  end
  if not host then
    return nil
  end
  return host, port == "" and HTTP_PORT or port
end

local function bracketed(host)
  return host:find(":", 1, true) and "[" .. host .. "]" or host
end

-- Nothing waits for the answer, and nothing rests on it.
local function tell(src, dst, destination)
  local socket = core.tcp()
  socket:settimeout(TIMEOUT_S)
  if not socket:connect(AGENT) then
    return
  end
  local body = '{"src":"' .. src .. '","dst":"' .. dst .. '","destination":"' .. destination .. '"}'
  socket:send("POST /v1/flows/told HTTP/1.1\r\nhost: localhost\r\nnodesentry.io: true\r\nconnection: close\r\n" ..
    "content-type: application/json\r\ncontent-length: " .. #body .. "\r\n\r\n" .. body)
  socket:receive("*l")
  socket:close()
end

core.register_action("asked_for", { "http-req" }, function(txn)
  local host, port = target(txn.f:url())
  if not host or tonumber(port) < 1 or tonumber(port) > 65535 then
    return
  end
  local destination = bracketed(host) .. ":" .. port
  txn:set_var("txn.to_host", host)
  txn:set_var("txn.to_port", tonumber(port))
  txn:set_var("txn.asked_for", destination)
  -- As the agent was asked: haproxy-identity.lua.
  tell(txn:get_var("txn.peer"), txn:get_var("txn.dialled"), destination)
end)
