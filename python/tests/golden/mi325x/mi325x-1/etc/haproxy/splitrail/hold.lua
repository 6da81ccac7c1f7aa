-- Ansible managed
-- Lets requests wait while what serves is exchanged, until the time that the map tells (s since the epoch) is over or
-- is set to 0.
local share = Map.new("/etc/haproxy/splitrail/share.map", Map._str)

core.register_action("hold", { "http-req" }, function(_)
  while (tonumber(share:lookup("until")) or 0) > core.now().sec do
    core.msleep(200)
  end
end)
