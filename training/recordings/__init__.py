"""Recorded traffic to episodes: what a vehicle among others would have told a model, and the truth.

In: CommonRoad scenarios, tables of tracks with roads as lines. Out: a data set of
`training.dataset.writer`, in which vehicles are the ego in turn, and what could not be used.
May touch the disk. States, actions and the filter of tracks are those of
`world_model_client.scene`: what is served and what is judged are made by the same code.
"""
