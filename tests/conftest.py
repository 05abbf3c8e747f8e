from hypothesis import settings

# Machines that run this are slow and shared: how long an example takes says nothing.
settings.register_profile("cima", deadline=None)
settings.load_profile("cima")
