"""The URLs of the annotation server."""

from django.urls import path

from annotations import tokens, views

urlpatterns = [
    path("", views.projects, name="projects"),
    path("tasks/<int:pk>/", views.task, name="task"),
    path("health", views.health, name="health"),
    path("api/login", tokens.login, name="api-login"),
    path("api/projects", views.list_projects, name="api-projects"),
    path("api/tasks", views.list_tasks, name="api-tasks"),
    path("api/tasks/<int:pk>/chunks/<int:number>", views.download_chunk, name="api-chunk"),
    path("api/tasks/<int:pk>/statistics", views.statistics, name="api-statistics"),
    path("api/tasks/<int:pk>/export", views.export, name="api-export"),
    path("api/assets", views.list_assets, name="api-assets"),
    path("api/assets/<int:pk>/download", views.download_asset, name="api-download"),
]
