-- Asks the agent who sends a flow, and keeps what it says in variables of the transaction: see haproxy-identity.cfg.
local AGENT = "/run/nodesentry/http.sock"
local TIMEOUT_S = 2

local NAMES = {
  ["x-spiffe-id"] = "txn.spiffe_id",
  ["x-nodesentry-namespace"] = "txn.namespace",
  ["x-nodesentry-pod"] = "txn.pod",
}

local function address(ip, port)
  ip = tostring(ip)
  return (ip:find(":", 1, true) and "[" .. ip .. "]" or ip) .. ":" .. tostring(port)
end

-- The status and, with 200, the headers; nil where there is no agent, or no answer of it in time.
local function ask(src, dst)
  local socket = core.tcp()
  socket:settimeout(TIMEOUT_S)
  if not socket:connect(AGENT) then
    return nil
  end
  socket:send("GET /v1/authorize?src=" .. src .. "&dst=" .. dst .. " HTTP/1.1\r\n" ..
    "host: localhost\r\nnodesentry.io: true\r\nconnection: close\r\n\r\n")
  local headers = {}
  local line = socket:receive("*l")
  local status = line and line:match("^HTTP/1%.1 (%d%d%d)")
  while status == "200" do
    line = socket:receive("*l")
    if not line then
      status = nil -- cut off
    elseif line:match("^%s*$") then
      break
    else
      local name, value = line:match("^([^:]+):%s*(.-)%s*$")
      if name then
        headers[name:lower()] = value
      end
    end
  end
  socket:close()
  return status, headers
end

core.register_action("nodesentry", { "http-req" }, function(txn)
  local src, dst = address(txn.f:src(), txn.f:src_port()), address(txn.f:dst(), txn.f:dst_port())
  txn:set_var("txn.peer", src)
  txn:set_var("txn.dialled", dst)
  local status, headers = ask(src, dst)
  if status == "200" or status == "403" then
    txn:set_var("txn.asked", true)
  end
  for name, variable in pairs(NAMES) do
    if headers and headers[name] then
      txn:set_var(variable, headers[name])
    end
  end
end)
