"""Requests at the control socket of a project."""

from __future__ import annotations

from logagg.errors import ConfigError, ExitStatus, LogaggError
from logagg.ipc.runs.run_messages import (
    ReloadRequest,
    RestartRequest,
    RunReply,
    RunRequest,
    ScaleRequest,
    StatusRequest,
    StopRequest,
    UpRequest,
)
from logagg.supervisor.control import RunControlServer
from logagg.supervisor.programs.project import Project
from logagg.supervisor.programs.project_plan import ProjectPlan

__all__ = ["ProjectRequests", "serve_project"]


class ProjectRequests:
    """Does what is asked of one project."""

    def __init__(self, project: Project) -> None:
        self._project = project

    async def answer(self, request: RunRequest) -> RunReply:
        """Do what a request is for.

        Raises:
            LogaggError: It cannot be done.
        """
        project = self._project
        match request:
            case StatusRequest():
                return RunReply(status=project.describe())
            case UpRequest():
                notes = await project.up(request.programs, request.formation)
                return RunReply(notes=notes)
            case ReloadRequest():
                return RunReply(replaced=await self._reload(request.program))
            case ScaleRequest():
                program = project.program(self._named(request.program, "scale"))
                return RunReply(workers=await program.scale(request.workers))
            case RestartRequest():
                await project.restart(self._named(request.program, "restart"))
                return RunReply(replaced=1)
            case StopRequest(program=""):
                project.stop("logagg stop")
                return RunReply(stopping=True)
            case StopRequest():
                await project.stop_program(request.program)
                return RunReply(stopping=True)

    def _named(self, name: str, verb: str) -> str:
        if not name:
            names = ", ".join(self._project.programs)
            raise ConfigError(f"{verb}: which program? There are: {names}")
        return name

    async def _reload(self, name: str) -> int:
        if name:
            return await self._project.program(name).running().reload()
        count = 0
        for each in list(self._project.programs.values()):
            if not each.is_over:
                count += await each.running().reload()
        if not count:
            raise LogaggError("no program runs; start them: logagg up")
        return count


async def serve_project(plan: ProjectPlan) -> tuple[ExitStatus, int]:
    """Run a project and answer at its control socket; returns as `Project.run`.

    Raises:
        LogaggError: It cannot be started.
    """
    project = Project(plan)
    control = RunControlServer(ProjectRequests(project).answer)
    await control.start()
    try:
        return await project.run()
    finally:
        control.close()
