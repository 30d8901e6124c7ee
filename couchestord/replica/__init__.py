"""A running store as other processes of the same daemon have it.

`host` runs beside the store and serves it over sockets; `store` is what another process has instead of an
`ObjectStore`: it reads catalog and disks itself and hands changes over. Everything between is what both
need: `messages` are pure, `channel` carries them, `bodies` are the long ones. No front end is known here.
"""
